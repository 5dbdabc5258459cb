// What the library says about itself.
#include <string>

#include "build_info.h"
#include "common/isa.h"
#include "common/parallel.h"

const char* slr_build_info(void) {
  static const std::string text = std::string("compiler=" SLR_BUILD_COMPILER "\nthreads=") + slr::parallel_runtime() +
                                  "\nisas=" + slr::built_isas() + "\ncuda=" SLR_BUILD_CUDA "\n";
  return text.c_str();
}

slr_status slr_cpu_isa(const char** name) {
  slr::Isa isa;
  const slr_status status = slr::chosen_isa(&isa);
  *name = slr::isa_name(isa);
  return status;
}
