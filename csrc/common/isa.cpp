#include "common/isa.h"

#include <cstdlib>
#include <cstring>

#include "common/status.h"

namespace slr {
namespace {

constexpr Isa all[] = {Isa::base, Isa::avx2, Isa::avx512, Isa::avx512bf16};
constexpr const char* names[] = {"base", "avx2", "avx512", "avx512bf16"};

bool built(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return SLR_IF_AVX2(true ||) false;
    case Isa::avx512:
      return SLR_IF_AVX512(true ||) false;
    case Isa::avx512bf16:
      return SLR_IF_AVX512BF16(true ||) false;
    default:
      return true;
  }
}

// cpuid, together with the operating system's word (XCR0) that it saves the wide registers.
bool supported(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (isa) {
    case Isa::avx2:
      return avx2;
    case Isa::avx512:
      return avx512;
    case Isa::avx512bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
    default:
      return true;
  }
#else
  return isa == Isa::base;
#endif
}

struct Choice {
  Isa isa = Isa::base;
  slr_status status = SLR_OK;
  const char* forced = nullptr;
};

Choice choose() {
  Choice choice;
  choice.forced = std::getenv("SLRFAST_CPU_ISA");
  if (choice.forced == nullptr || *choice.forced == '\0') {
    for (Isa isa : all)
      if (built(isa) && supported(isa)) choice.isa = isa;
    return choice;
  }
  choice.status = SLR_INVALID_ARGUMENT;
  for (Isa isa : all) {
    if (std::strcmp(choice.forced, isa_name(isa)) != 0) continue;
    choice.isa = isa;
    choice.status = built(isa) && supported(isa) ? SLR_OK : SLR_UNSUPPORTED;
  }
  return choice;
}

}  // namespace

const char* isa_name(Isa isa) { return names[static_cast<int>(isa)]; }

const char* built_isas() {
  return "base" SLR_IF_AVX2(" avx2") SLR_IF_AVX512(" avx512") SLR_IF_AVX512BF16(" avx512bf16");
}

slr_status chosen_isa(Isa* isa) {
  static const Choice choice = choose();
  *isa = choice.isa;
  if (choice.status == SLR_INVALID_ARGUMENT)
    return fail(choice.status, "SLRFAST_CPU_ISA must be one of base, avx2, avx512, avx512bf16, got '%.64s'",
                choice.forced);
  if (choice.status == SLR_UNSUPPORTED)
    return fail(choice.status, "SLRFAST_CPU_ISA asks for %s, which %s; unset it to choose automatically",
                isa_name(choice.isa),
                built(choice.isa) ? "this processor or operating system lacks" : "was not built into this library");
  return SLR_OK;
}

}  // namespace slr
