// What this machine can do at most, measured: int8 and fp32 arithmetic, read bandwidth by size of the data. One thread.
// Prints JSON. Compiled with -march=native by bench/ceilings.py; not part of the engine.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;
const char* separator = "";

void print(const char* name, double value) {
    std::printf("%s\"%s\": %.4g", separator, name, value);
    separator = ", ";
}

// The best of many short runs: on a shared machine a run of 0.1 ms often has a core to itself, one of 0.1 s never has.
// The kernels' times that are compared with this are the best of many short runs too.
template <class Work>
double best_rate(double per_run, Work work) {
    double best = 0;
    const auto end = Clock::now() + std::chrono::milliseconds(700);
    for (int i = 0; i < 20 || Clock::now() < end; ++i) {
        const auto began = Clock::now();
        work();
        best = std::max(best, per_run / std::chrono::duration<double>(Clock::now() - began).count());
    }
    return best;
}

// Twelve independent sums hide the latency; an empty asm keeps the compiler from folding them.
constexpr int kSums = 12;
#define KEEP(x) asm volatile("" : "+x"(x))

#if defined(__AVX2__)
void maddubs(std::int64_t rounds) {
    __m256i sums[kSums] = {}, u = _mm256_set1_epi8(3), s = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
    for (std::int64_t r = 0; r < rounds; ++r)
        for (auto& sum : sums) {
            KEEP(u);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), ones));
        }
    for (auto& sum : sums) KEEP(sum);
}
#endif
#if defined(__AVX2__) && defined(__FMA__)
void fma256(std::int64_t rounds) {
    __m256 sums[kSums] = {}, a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
    for (std::int64_t r = 0; r < rounds; ++r)
        for (auto& sum : sums) {
            sum = _mm256_fmadd_ps(a, b, sum);
            KEEP(sum);
        }
}
#endif
#if defined(__AVXVNNI__)
void vnni256(std::int64_t rounds) {
    __m256i sums[kSums] = {}, u = _mm256_set1_epi8(3), s = _mm256_set1_epi8(1);
    for (std::int64_t r = 0; r < rounds; ++r)
        for (auto& sum : sums) {
            sum = _mm256_dpbusd_avx_epi32(sum, u, s);
            KEEP(sum);
        }
}
#endif
#if defined(__AVX512VNNI__)
#define KEEP512(x) asm volatile("" : "+v"(x))
void vnni512(std::int64_t rounds) {
    __m512i sums[kSums] = {}, u = _mm512_set1_epi8(3), s = _mm512_set1_epi8(1);
    for (std::int64_t r = 0; r < rounds; ++r)
        for (auto& sum : sums) {
            sum = _mm512_dpbusd_epi32(sum, u, s);
            KEEP512(sum);
        }
}
void fma512(std::int64_t rounds) {
    __m512 sums[kSums] = {}, a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
    for (std::int64_t r = 0; r < rounds; ++r)
        for (auto& sum : sums) {
            sum = _mm512_fmadd_ps(a, b, sum);
            KEEP512(sum);
        }
}
#endif
#if defined(__ARM_FEATURE_DOTPROD)
void sdot(std::int64_t rounds) {
    int32x4_t sums[kSums] = {};
    int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(1);
    for (std::int64_t r = 0; r < rounds; ++r)
        for (auto& sum : sums) {
            sum = vdotq_s32(sum, a, b);
            asm volatile("" : "+w"(sum));
        }
}
#endif

// Reads with wide, independent loads; 128 bytes a step.
std::uint64_t read_all(const std::uint64_t* data, std::size_t count) {
    std::uint64_t sums[16] = {};
    for (std::size_t i = 0; i + 16 <= count; i += 16)
        for (std::size_t k = 0; k < 16; ++k) sums[k] ^= data[i + k];
    std::uint64_t all = 0;
    for (const auto sum : sums) all ^= sum;
    return all;
}

volatile std::uint64_t sink;

// Goes round through `bytes`, a megabyte in each timed run: long enough for the clock, short enough to be undisturbed.
double bandwidth(std::size_t bytes) {
    constexpr std::size_t kRun = std::size_t{1} << 20;
    const std::vector<std::uint64_t> data(bytes / 8, 1);
    const std::size_t part = std::min(bytes, kRun), rounds = kRun / part;
    std::size_t at = 0;
    return best_rate(static_cast<double>(part * rounds), [&] {
        for (std::size_t r = 0; r < rounds; ++r) sink = read_all(data.data() + at / 8, part / 8);
        at = (at + part) % bytes;
    });
}

[[maybe_unused]] double arithmetic(double per_round, void (*work)(std::int64_t)) {
    constexpr std::int64_t kRounds = 10'000;  // about 50 microseconds
    return best_rate(per_round * kRounds, [&] { work(kRounds); });
}

}  // namespace

int main() {
    std::printf("{");
#if defined(__AVX2__)
    print("int8 maddubs+madd+add, 256 bit", arithmetic(32.0 * kSums, maddubs));
#endif
#if defined(__AVXVNNI__)
    print("int8 dpbusd, 256 bit", arithmetic(32.0 * kSums, vnni256));
#endif
#if defined(__AVX512VNNI__)
    print("int8 dpbusd, 512 bit", arithmetic(64.0 * kSums, vnni512));
    print("fp32 fma, 512 bit", arithmetic(16.0 * kSums, fma512));
#endif
#if defined(__AVX2__) && defined(__FMA__)
    print("fp32 fma, 256 bit", arithmetic(8.0 * kSums, fma256));
#endif
#if defined(__ARM_FEATURE_DOTPROD)
    print("int8 sdot, 128 bit", arithmetic(16.0 * kSums, sdot));
#endif
    print("read 24 KiB", bandwidth(24u << 10));
    print("read 512 KiB", bandwidth(512u << 10));
    print("read 8 MiB", bandwidth(8u << 20));
    print("read 256 MiB", bandwidth(256u << 20));
    std::printf("}\n");
}
