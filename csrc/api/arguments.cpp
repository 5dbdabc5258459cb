#include "api/arguments.h"

#include <cmath>
#include <cstring>

#include "common/dtype.h"

namespace slr {
namespace {

template <class T>
void pack_rows(const T* rows, int64_t b, int64_t d, T* to) {
  const int64_t lanes = kBlockBytes / static_cast<int64_t>(sizeof(T));
  for (int64_t block = 0; block * lanes < b; ++block, to += d * lanes)
    for (int64_t i = 0; i < lanes; ++i) {
      const int64_t row = block * lanes + i;
      for (int64_t j = 0; j < d; ++j) to[j * lanes + i] = row < b ? rows[row * d + j] : 0;
    }
}

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// The upper half of the float that is nearest to x among those with an empty lower half.
uint32_t rounded(float x) {
  const uint32_t bits = bits_of(x);
  if (x != x) return 0x7fc0u;
  if (bits << 1 < 0xff000000u && bits << 1 >= 0xfeff0000u) return bits >> 16;  // not up to infinity
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// Whether any low part is not zero.
bool pack_pairs(const float* rows, int64_t b, int64_t d, uint32_t* high, uint32_t* low) {
  const int64_t lanes = kBlockBytes / 4, half = (d + 1) / 2;
  uint32_t rest = 0;
  std::memset(high, 0, (b + lanes - 1) / lanes * half * kBlockBytes);
  std::memset(low, 0, (b + lanes - 1) / lanes * half * kBlockBytes);
  for (int64_t row = 0; row < b; ++row)
    for (int64_t j = 0; j < d; ++j) {
      const float x = rows[row * d + j];
      const uint32_t upper = rounded(x), widened = upper << 16;
      float near;
      std::memcpy(&near, &widened, sizeof near);
      const uint32_t lower = x == near ? 0 : rounded(x - near);
      const int64_t at = ((row / lanes) * half + j / 2) * lanes + row % lanes;
      high[at] |= upper << (j % 2 * 16);
      low[at] |= lower << (j % 2 * 16);
      rest |= lower;
    }
  return rest != 0;
}

}  // namespace

slr_status out_of_memory(const char* op) { return fail(SLR_OUT_OF_MEMORY, "%s: not enough memory", op); }

slr_status check_compute_dtype(const char* op, int32_t dtype) {
  if (dtype == SLR_F32 || dtype == SLR_F64) return SLR_OK;
  return fail(SLR_INVALID_ARGUMENT, "%s: dtype must be SLR_F32 or SLR_F64, got %d", op, dtype);
}

slr_status check_temperature(const char* op, const char* name, double value) {
  if (std::isfinite(value) && value > 0) return SLR_OK;
  return fail(SLR_INVALID_ARGUMENT, "%s: %s must be finite and > 0, got %g", op, name, value);
}

slr_status check_k(const char* op, int64_t k, int64_t n) {
  if (1 <= k && k <= n) return SLR_OK;
  return fail(SLR_INVALID_ARGUMENT, "%s: k must be in [1, %lld], got %lld", op, (long long)n, (long long)k);
}

slr_status check_buffers(const char* op, std::initializer_list<Buffer> buffers) {
  for (const Buffer& buffer : buffers) {
    int64_t count, bytes;
    if (buffer.rows < 0 || buffer.columns < 0 || __builtin_mul_overflow(buffer.rows, buffer.columns, &count) ||
        __builtin_mul_overflow(count, 4 * buffer.size, &bytes))  // room for padding
      return fail(SLR_INVALID_ARGUMENT, "%s: impossible size %lld x %lld of %s", op, (long long)buffer.rows,
                  (long long)buffer.columns, buffer.name);
    if (count > 0 && buffer.data == nullptr && !buffer.optional)
      return fail(SLR_INVALID_ARGUMENT, "%s: %s is null", op, buffer.name);
    if (reinterpret_cast<uintptr_t>(buffer.data) % buffer.size != 0)
      return fail(SLR_INVALID_ARGUMENT, "%s: %s is not aligned to its elements", op, buffer.name);
  }
  return SLR_OK;
}

slr_status check_bank(const char* op, const Bank& bank) {
  if (!is_dtype(bank.dtype)) return fail(SLR_INVALID_ARGUMENT, "%s: unknown bank dtype %d", op, bank.dtype);
  int64_t rows, columns, extent, bytes;
  if (bank.n < 0 || bank.d < 0 || __builtin_mul_overflow(bank.n, bank.row_stride, &rows) ||
      __builtin_mul_overflow(bank.d, bank.column_stride, &columns) || __builtin_add_overflow(rows, columns, &extent) ||
      __builtin_mul_overflow(extent, size_of(bank.dtype), &bytes))
    return fail(SLR_INVALID_ARGUMENT, "%s: impossible bank of %lld x %lld with strides %lld, %lld", op,
                (long long)bank.n, (long long)bank.d, (long long)bank.row_stride, (long long)bank.column_stride);
  return check_buffers(op, {{"bank", bank.data, bank.n > 0, bank.d, size_of(bank.dtype)}});
}

Packed pack(Parts* parts, int32_t dtype, const void* rows, int64_t b, int64_t d, bool pairs) {
  const int64_t blocks = blocks_of(dtype, b), count = blocks * lanes_of(dtype) * d;
  void* const packed = dtype == SLR_F64 ? static_cast<void*>(parts->take<double>(count)) : parts->take<float>(count);
  const int64_t half = blocks * lanes_of(dtype) * ((d + 1) / 2);
  uint32_t *high = pairs ? parts->take<uint32_t>(half) : nullptr, *low = pairs ? parts->take<uint32_t>(half) : nullptr;
  if (packed == nullptr || count == 0) return {packed, nullptr, nullptr};
  if (dtype == SLR_F64)
    pack_rows(static_cast<const double*>(rows), b, d, static_cast<double*>(packed));
  else
    pack_rows(static_cast<const float*>(rows), b, d, static_cast<float*>(packed));
  if (pairs && !pack_pairs(static_cast<const float*>(rows), b, d, high, low)) low = nullptr;
  return {packed, high, low};
}

}  // namespace slr
