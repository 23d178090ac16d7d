#include "isa.h"

#include <cstdlib>
#include <stdexcept>

namespace sparselane {
namespace {

std::vector<const Kernels*> supported_kernels() {
    std::vector<const Kernels*> found{&reference_kernels()};
#ifdef SPARSELANE_AVX2
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2_kernels());
#endif
    return found;
}

}  // namespace

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const Kernels* kernels : supported_kernels()) names.emplace_back(kernels->name);
    return names;
}

const Kernels& choose_kernels(const std::optional<std::string>& requested) {
    const auto supported = supported_kernels();
    const char* environment = std::getenv("SPARSELANE_ISA");
    std::string wanted = environment == nullptr ? "" : environment;
    std::string asker = "SPARSELANE_ISA";
    if (requested) {
        wanted = *requested;
        asker = "isa";
    } else if (wanted.empty()) {
        return *supported.back();
    }
    std::string names;
    for (const Kernels* kernels : supported) {
        if (wanted == kernels->name) return *kernels;
        names += names.empty() ? kernels->name : std::string(", ") + kernels->name;
    }
    throw std::invalid_argument(asker + " is '" + wanted + "', but this CPU and this build can run only: " + names);
}

}  // namespace sparselane
