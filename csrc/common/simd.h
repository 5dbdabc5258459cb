// Vectors of the instruction set a file is compiled for: Lanes<T> loads `width` elements of storage type T into a
// vector of the type they are computed in, and stores it rounded to nearest even. For files in cpu/ only (see isa.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "common/dtype.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace slr {
namespace SLR_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T, int lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(lanes * sizeof(T))));
};
template <class T, int lanes>
using Vector = typename VectorOf<T, lanes>::type;

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Conversions of one element.

inline float to_compute(float x) { return x; }
inline double to_compute(double x) { return x; }
inline float to_compute(Bf16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }
inline float to_compute(F16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (magnitude << 13));
  const float value = bit_cast<float>(magnitude << 13) * 0x1p112f;  // exact, also for subnormals
  return bit_cast<float>(sign | bit_cast<uint32_t>(value));
}

inline void from_compute(float x, float* to) { *to = x; }
inline void from_compute(double x, double* to) { *to = x; }
inline void from_compute(float x, Bf16* to) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  to->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void from_compute(float x, F16* to) {
  const uint32_t bits = bit_cast<uint32_t>(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or is infinite
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal half: adding 1/2 leaves its 10 bits at the bottom of the float
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  to->bits = static_cast<uint16_t>(sign | half);
}

// Conversions of a vector.

template <class T>
struct Lanes {  // float and double: stored as computed
  static constexpr int width = kVectorBytes / sizeof(T);
  using Value = Vector<T, width>;
  using Stored = Value;
  static Value decode(Stored x) { return x; }
  static Stored encode(Value x) { return x; }
};

template <>
struct Lanes<Bf16> {
  static constexpr int width = kVectorBytes / 4;
  using Value = Vector<float, width>;
  using Bits = Vector<uint32_t, width>;
  using Stored = Vector<uint16_t, width>;
  static Value decode(Stored x) { return bit_cast<Value>(__builtin_convertvector(x, Bits) << 16); }
  static Stored encode(Value x) {
    const Bits bits = bit_cast<Bits>(x);
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, nan = bit_cast<Bits>(x != x);
    return __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), Stored);
  }
};

template <>
struct Lanes<F16> {
  static constexpr int width = kVectorBytes / 4;
  using Value = Vector<float, width>;
  using Stored = Vector<uint16_t, width>;
#if defined(__AVX512F__)
  static Value decode(Stored x) { return _mm512_cvtph_ps(bit_cast<__m256i>(x)); }
  static Stored encode(Value x) { return bit_cast<Stored>(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__F16C__)
  static Value decode(Stored x) { return _mm256_cvtph_ps(bit_cast<__m128i>(x)); }
  static Stored encode(Value x) { return bit_cast<Stored>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
#else
  static Value decode(Stored x) {
    Value value;
    for (int i = 0; i < width; ++i) value[i] = to_compute(F16{x[i]});
    return value;
  }
  static Stored encode(Value x) {
    Stored stored;
    for (int i = 0; i < width; ++i) {
      F16 half;
      from_compute(x[i], &half);
      stored[i] = half.bits;
    }
    return stored;
  }
#endif
};

template <class T>
inline typename Lanes<T>::Value load(const T* from) {
  typename Lanes<T>::Stored stored;
  std::memcpy(&stored, from, sizeof stored);
  return Lanes<T>::decode(stored);
}

template <class T>
inline void store(T* to, typename Lanes<T>::Value value) {
  const typename Lanes<T>::Stored stored = Lanes<T>::encode(value);
  std::memcpy(to, &stored, sizeof stored);
}

// Stores past the caches; `to` is aligned to the stored vector. Call fence() before others may read.
template <class T>
inline void stream(T* to, typename Lanes<T>::Value value) {
  const typename Lanes<T>::Stored stored = Lanes<T>::encode(value);
#if defined(__AVX512F__)
  if constexpr (sizeof stored == 64)
    return _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bit_cast<__m512i>(stored));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof stored == 32)
    return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bit_cast<__m256i>(stored));
#endif
#if defined(__x86_64__)
  if constexpr (sizeof stored == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(to), bit_cast<__m128i>(stored));
#endif
  std::memcpy(to, &stored, sizeof stored);
}

inline void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace SLR_ISA
}  // namespace slr
