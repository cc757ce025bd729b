// Instruction sets: which ones this build holds, and which one runs.
//
// Every source in csrc/core/kernels/ is compiled once per instruction set, with DYNCP_ISA set to its name, into
// namespace dyncp::<name>.  Such a source exports tables of function pointers; callers pick the table of the active
// set.  Of avx512vnni and neondot, which multiply bytes, there are only the streaming kernels, which alone gain by it,
// and of amx all others: tiles are of no use to a few frames.
//
//   struct ScaleKernels { void (*scale)(float* values, int64_t count, float factor); };
//   DYNCP_DECLARE_KERNELS(ScaleKernels, scale_kernels)               // in the header, at global scope
//   namespace dyncp::DYNCP_ISA { const ScaleKernels scale_kernels = {...}; }  // in kernels/scale.cpp
//   const ScaleKernels& kernels = DYNCP_KERNELS(ScaleKernels, scale_kernels); // in the caller
#pragma once

#include <vector>

namespace dyncp {

enum class Isa { portable, avx2, avx512, avx512vnni, amx, neon, neondot };

const char* isa_name(Isa isa);

// True when this build holds the set and this processor runs it.
bool isa_supported(Isa isa);

std::vector<Isa> supported_isas();

// The set in use: the widest supported one, or the one that the environment variable DYNCP_ISA names.
// Throws std::runtime_error when that name is unknown or not supported.
Isa active_isa();

// Overrides the choice for this process; for tests and measurements.  Throws like active_isa().
void set_active_isa(const char* name);

// The set whose kernels run when a set is in use, for all kernels but the streaming ones, and for those.
constexpr Isa isa_without_streams(Isa isa) {
  return isa == Isa::avx512vnni ? Isa::avx512 : isa == Isa::neondot ? Isa::neon : isa;
}
constexpr Isa isa_of_streams(Isa isa) { return isa == Isa::amx ? Isa::avx512vnni : isa; }

}  // namespace dyncp

// The sets of this build: of all kernels but the streaming ones, and of those.  DYNCP_WITH_AMX and DYNCP_WITH_NEONDOT
// say that the compiler knows the set; all sources of a build agree on them.
#if defined(__x86_64__) && defined(DYNCP_WITH_AMX)
#define DYNCP_FOR_EACH_ISA(APPLY, ...) \
  APPLY(portable, __VA_ARGS__) APPLY(avx2, __VA_ARGS__) APPLY(avx512, __VA_ARGS__) APPLY(amx, __VA_ARGS__)
#elif defined(__x86_64__)
#define DYNCP_FOR_EACH_ISA(APPLY, ...) APPLY(portable, __VA_ARGS__) APPLY(avx2, __VA_ARGS__) APPLY(avx512, __VA_ARGS__)
#elif defined(__aarch64__)
#define DYNCP_FOR_EACH_ISA(APPLY, ...) APPLY(portable, __VA_ARGS__) APPLY(neon, __VA_ARGS__)
#else
#define DYNCP_FOR_EACH_ISA(APPLY, ...) APPLY(portable, __VA_ARGS__)
#endif

#if defined(__x86_64__)
#define DYNCP_FOR_EACH_STREAM_ISA(APPLY, ...) \
  APPLY(portable, __VA_ARGS__) APPLY(avx2, __VA_ARGS__) APPLY(avx512, __VA_ARGS__) APPLY(avx512vnni, __VA_ARGS__)
#elif defined(__aarch64__) && defined(DYNCP_WITH_NEONDOT)
#define DYNCP_FOR_EACH_STREAM_ISA(APPLY, ...) \
  APPLY(portable, __VA_ARGS__) APPLY(neon, __VA_ARGS__) APPLY(neondot, __VA_ARGS__)
#else
#define DYNCP_FOR_EACH_STREAM_ISA DYNCP_FOR_EACH_ISA
#endif

#define DYNCP_DECLARE_TABLE_OF_ISA(isa, Table, name) \
  namespace dyncp::isa {                             \
  extern const Table name;                           \
  }
#define DYNCP_DECLARE_KERNELS(Table, name) DYNCP_FOR_EACH_ISA(DYNCP_DECLARE_TABLE_OF_ISA, Table, name)
#define DYNCP_DECLARE_STREAM_KERNELS(Table, name) DYNCP_FOR_EACH_STREAM_ISA(DYNCP_DECLARE_TABLE_OF_ISA, Table, name)

#define DYNCP_CASE_OF_ISA(isa, Table, name) \
  case ::dyncp::Isa::isa:                   \
    return ::dyncp::isa::name;
#define DYNCP_TABLE_OF(ISA, FOR_EACH, Table, name)                                                      \
  ([]() -> const Table& {                                                                               \
    switch (ISA) { FOR_EACH(DYNCP_CASE_OF_ISA, Table, name) default : return ::dyncp::portable::name; } \
  }())
#define DYNCP_KERNELS(Table, name) \
  DYNCP_TABLE_OF(::dyncp::isa_without_streams(::dyncp::active_isa()), DYNCP_FOR_EACH_ISA, Table, name)
#define DYNCP_STREAM_KERNELS(Table, name) \
  DYNCP_TABLE_OF(::dyncp::isa_of_streams(::dyncp::active_isa()), DYNCP_FOR_EACH_STREAM_ISA, Table, name)
