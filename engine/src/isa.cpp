#include "isa.h"

#include <cstdlib>
#include <stdexcept>

#ifdef SPARSELANE_AVX2
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef SPARSELANE_NEON
#include <sys/auxv.h>
#endif

namespace sparselane {
namespace {

#ifdef SPARSELANE_AVX2
// __builtin_cpu_supports knows AVX-VNNI only in newer compilers; that the system saves the registers follows from AVX2.
bool has_avx_vnni() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 4)) != 0;
}

bool has_avx512_vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

// Linux keeps the tiles of AMX from a process until it asks for them; a virtual machine or a sandbox may refuse. Asking
// again is harmless, and threads of before may use them too.
bool has_amx_int8() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
    const bool tiles = (edx & (1u << 24)) != 0, bytes = (edx & (1u << 25)) != 0, vbmi2 = (ecx & (1u << 6)) != 0;
    if (!tiles || !bytes || !vbmi2) return false;
#ifdef __linux__
    constexpr long kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
#else
    return false;
#endif
}
#endif

// From slow to fast.
std::vector<const Kernels*> supported_kernels() {
    std::vector<const Kernels*> found{&reference_kernels()};
#ifdef SPARSELANE_AVX2
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return found;
    found.push_back(&avx2_kernels());
    if (has_avx_vnni()) found.push_back(&avx_vnni_kernels());
    if (!has_avx512_vnni()) return found;
    found.push_back(&avx512_vnni_kernels());
    if (has_amx_int8()) found.push_back(&amx_int8_kernels());
#endif
#ifdef SPARSELANE_NEON
    if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) found.push_back(&neon_kernels());
#endif
    return found;
}

std::string from_environment() {
    const char* name = std::getenv("SPARSELANE_ISA");
    return name == nullptr ? "" : name;
}

}  // namespace

bool kernels_are_named(const std::optional<std::string>& requested) {
    return requested.has_value() || !from_environment().empty();
}

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const Kernels* kernels : supported_kernels()) names.emplace_back(kernels->name);
    return names;
}

const Kernels& choose_kernels(const std::optional<std::string>& requested) {
    const auto supported = supported_kernels();
    if (!kernels_are_named(requested)) return *supported.back();
    const std::string wanted = requested ? *requested : from_environment();
    const std::string asker = requested ? "isa" : "SPARSELANE_ISA";
    std::string names;
    for (const Kernels* kernels : supported) {
        if (wanted == kernels->name) return *kernels;
        names += names.empty() ? kernels->name : std::string(", ") + kernels->name;
    }
    throw std::invalid_argument(asker + " is '" + wanted + "', but this CPU and this build can run only: " + names);
}

}  // namespace sparselane
