// In place of the compiler's <arm_neon.h>: the same names, carried out by this CPU's instructions through SIMDe.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/arm/neon.h>

// SIMDe fuses vfmaq_f32 where the CPU can, but not vfmsq_f32; Arm's instruction rounds once.
#undef vfmsq_f32
#define vfmsq_f32(a, b, c) simde_vfmaq_f32(a, simde_vnegq_f32(b), c)
