// slr_enqueue_cpu: argument checks, and the cursor.
#include "common/enqueue.h"

#include "api/arguments.h"
#include "common/dtype.h"

slr_status slr_enqueue_cpu(int32_t bank_dtype, void* bank, int64_t row_stride, int64_t column_stride, int64_t n,
                           int64_t d, int64_t* cursor, int32_t key_dtype, const void* keys, int64_t b,
                           int32_t normalize, int32_t threads) {
  using namespace slr;
  const char* const op = "enqueue_cpu";
  if (!is_dtype(key_dtype)) return fail(SLR_INVALID_ARGUMENT, "%s: unknown key dtype %d", op, key_dtype);
  if (const slr_status status = check_bank(op, {bank_dtype, bank, row_stride, column_stride, n, d})) return status;
  if (n == 0) return fail(SLR_INVALID_ARGUMENT, "%s: the bank must have at least one row", op);
  if (const slr_status status =
          check_buffers(op, {{"keys", keys, b, d, size_of(key_dtype)}, {"cursor", cursor, 1, 1, sizeof(int64_t)}}))
    return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  const int64_t start = (*cursor % n + n) % n, skipped = b > n ? b - n : 0;
  const Enqueue job = {bank_dtype, bank, row_stride, column_stride, n, d, start, key_dtype, keys, normalize != 0};
  const auto kernel = SLR_SELECT_KERNEL(isa, enqueue);
  const slr_status status =
      for_items(op, b - skipped, (b - skipped) * d < 1 << 16 ? 1 : threads, 0,
                [&](int64_t begin, int64_t end, void*) { kernel(job, skipped + begin, skipped + end); });
  if (!status) *cursor = (start + b % n) % n;
  return status;
}
