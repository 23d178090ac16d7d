// Which kernels run: decided here and nowhere else.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels.h"

namespace sparselane {

// The names of the kernel sets that this build and this CPU can run, slowest first.
std::vector<std::string> supported_isas();

// The kernels for `requested`, else for the environment variable SPARSELANE_ISA, else the fastest supported.
// Throws std::invalid_argument if the one asked for cannot run here.
const Kernels& choose_kernels(const std::optional<std::string>& requested);

// Whether the caller or the environment asks for certain kernels: then they do what their table says.
bool kernels_are_named(const std::optional<std::string>& requested);

}  // namespace sparselane
