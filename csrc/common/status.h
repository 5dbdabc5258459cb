// Status and the error message of the calling thread.
#pragma once

#include "slrfast/slrfast.h"

namespace slr {

// Records a printf-style message for slr_last_error() and returns `status`.
slr_status fail(slr_status status, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace slr
