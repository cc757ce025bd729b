#include "core/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__APPLE__) && defined(__aarch64__)
#include <sys/sysctl.h>
#endif

namespace dyncp {
namespace {

constexpr Isa kAll[] = {Isa::portable, Isa::neon,       Isa::neondot, Isa::avx2,
                        Isa::avx512,   Isa::avx512vnni, Isa::amx};  // narrowest first
constexpr int kUndecided = -1;
std::atomic<int> chosen{kUndecided};

#define DYNCP_IS_SET(name, set) || set == Isa::name
bool isa_built(Isa isa) {
  return false DYNCP_FOR_EACH_ISA(DYNCP_IS_SET, isa) DYNCP_FOR_EACH_STREAM_ISA(DYNCP_IS_SET, isa);
}

#if defined(__x86_64__)
// The tile registers: of the processor, and with the leave of the system, which Linux gives a process that asks.
bool may_use_tiles() {
#if defined(__linux__)
  unsigned a, b, c, d;
  constexpr unsigned kVbmi = 1u << 1, kBfloat16 = 1u << 22, kTiles = 1u << 24;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((c & kVbmi) == 0 || (d & kBfloat16) == 0 || (d & kTiles) == 0) return false;
  constexpr long kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
#else
  return false;
#endif
}
#endif

#if defined(__aarch64__)
bool multiplies_bytes() {
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP, which older headers lack
  return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof(has);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
  return false;
#endif
}
#endif

bool processor_has(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx512) return avx512;
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (isa == Isa::avx512vnni) return vnni;
  if (isa == Isa::amx) return vnni && may_use_tiles();
#elif defined(__aarch64__)
  if (isa == Isa::neondot) return multiplies_bytes();
#endif
  return isa == Isa::portable || isa == Isa::neon;
}

Isa isa_named(const std::string& name) {
  std::string known;
  for (Isa isa : supported_isas()) {
    if (name == isa_name(isa)) return isa;
    known += (known.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw std::runtime_error("DYNCP_ISA: must name an instruction set of this processor and build, one of " + known +
                           " (got " + name + ")");
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512vnni:
      return "avx512vnni";
    case Isa::amx:
      return "amx";
    case Isa::neon:
      return "neon";
    case Isa::neondot:
      return "neondot";
    default:
      return "portable";
  }
}

bool isa_supported(Isa isa) { return isa_built(isa) && processor_has(isa); }

std::vector<Isa> supported_isas() {
  std::vector<Isa> found;
  for (Isa isa : kAll) {
    if (isa_supported(isa)) found.push_back(isa);
  }
  return found;
}

Isa active_isa() {
  int current = chosen.load(std::memory_order_relaxed);
  if (current == kUndecided) {
    const char* wanted = std::getenv("DYNCP_ISA");
    current = static_cast<int>(wanted != nullptr && *wanted != '\0' ? isa_named(wanted) : supported_isas().back());
    chosen.store(current, std::memory_order_relaxed);
  }
  return static_cast<Isa>(current);
}

void set_active_isa(const char* name) { chosen.store(static_cast<int>(isa_named(name)), std::memory_order_relaxed); }

}  // namespace dyncp
