// Which instruction set the leaf functions use.
#include "simd.h"

#include <atomic>

#ifdef FFALORA_X86
#include <cpuid.h>
#endif
#ifdef FFALORA_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ffalora {
namespace {

std::atomic<int> chosen{-1};
std::atomic<bool> always_amx{false};

#ifdef FFALORA_BF16_DOT
// Tiles and their bfloat16 products, in a processor whose system lets this process have tiles.
bool has_amx() {
#ifdef FFALORA_AMX
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(edx & kBf16) || !(edx & kTile)) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl, since Linux 5.16
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

}  // namespace

Level detected_level() {
#ifdef FFALORA_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#ifdef FFALORA_BF16_DOT
  if (avx2 && avx512 && __builtin_cpu_supports("avx512bf16")) return has_amx() ? kAmx : kAvx512Bf16;
#endif
  if (avx2 && avx512) return kAvx512;
  if (avx2) return kAvx2;
#endif
  return kBaseline;
}

Level level() {
  int value = chosen.load(std::memory_order_relaxed);
  if (value < 0) {
    value = detected_level();
    chosen.store(value, std::memory_order_relaxed);
  }
  return static_cast<Level>(value);
}

bool amx() { return always_amx.load(std::memory_order_relaxed) || level() == kAmx; }

bool set_amx(bool always) {
#ifdef FFALORA_AMX
  always_amx.store(always, std::memory_order_relaxed);
  return true;
#else
  return !always;
#endif
}

bool set_level(int wanted) {
  if (wanted < kBaseline || wanted > detected_level()) return false;
  chosen.store(wanted, std::memory_order_relaxed);
  return true;
}

}  // namespace ffalora
