// Arithmetic on vectors of T = float or double, one row of the batch per lane. For files in cpu/ only (see isa.h).
#pragma once

#include "common/simd.h"

namespace slr {
namespace SLR_ISA {

// What a mask, the result of comparing vectors of T, consists of.
template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = int32_t;
  using positive = uint32_t;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
  using positive = uint64_t;
};
template <class T>
using Bits = typename BitsOf<T>::type;
template <class T>
using Unsigned = typename BitsOf<T>::positive;

template <class T>
struct Simd {
  static constexpr int width = kVectorBytes / sizeof(T);
  using Value = Vector<T, width>;
  using Mask = Vector<Bits<T>, width>;  // all bits of a lane or none; also integers of the same size
};

template <class T>
using Value = typename Simd<T>::Value;
template <class T>
using Mask = typename Simd<T>::Mask;

template <class T>
inline Value<T> fill(T x) {
  return Value<T>{} + x;
}

template <class T>
inline Value<T> read(const T* from) {
  Value<T> value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
inline void write(T* to, Value<T> value) {
  std::memcpy(to, &value, sizeof value);
}

// Whether any lane of a mask is set.
template <class M>
inline bool any(M mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask(bit_cast<__m512i>(mask), bit_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256(bit_cast<__m256i>(mask), bit_cast<__m256i>(mask));
#else
  for (unsigned i = 0; i < sizeof(M) / sizeof(mask[0]); ++i)
    if (mask[i]) return true;
  return false;
#endif
}

// The larger of each lane; x where y is NaN.
template <class V>
inline V larger(V x, V y) {
  return y > x ? y : x;
}

// a * b + c, rounded once where the instruction set can. Nothing else is contracted: x * y - z must be 0 for z = x * y.
template <class V>
inline V fused(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(a[0]) == 4)
    return bit_cast<V>(_mm512_fmadd_ps(bit_cast<__m512>(a), bit_cast<__m512>(b), bit_cast<__m512>(c)));
  else
    return bit_cast<V>(_mm512_fmadd_pd(bit_cast<__m512d>(a), bit_cast<__m512d>(b), bit_cast<__m512d>(c)));
#elif defined(__FMA__)
  if constexpr (sizeof(a[0]) == 4)
    return bit_cast<V>(_mm256_fmadd_ps(bit_cast<__m256>(a), bit_cast<__m256>(b), bit_cast<__m256>(c)));
  else
    return bit_cast<V>(_mm256_fmadd_pd(bit_cast<__m256d>(a), bit_cast<__m256d>(b), bit_cast<__m256d>(c)));
#else
  return a * b + c;
#endif
}

// c0 + c1 x + c2 x^2 + ..., by Horner's rule from the highest power down.
template <class V, class T>
inline V polynomial(V x, V sum, T c) {
  return fused(x, sum, V{} + c);
}
template <class V, class T, class... Rest>
inline V polynomial(V x, V sum, T c, Rest... rest) {
  return polynomial(x, fused(x, sum, V{} + c), rest...);
}

// 2^x for x <= about 100, within 2 roundings; 0 below the normal numbers, NaN for NaN.
inline Value<float> exp2(Value<float> x) {
  using V = Value<float>;
  const float magic = 0x1.8p23f;  // adding it rounds to the nearest integer and leaves that in the low bits
  x = x < -127.0f ? fill(-127.0f) : x;
  const V shifted = x + magic, f = x - (shifted - magic);
  const V p = polynomial(f, fill(0.00015469731972037078f), 0.0013400432165225804f, 0.009618025602985998f,
                         0.05550327214209406f, 0.2402265121359483f, 0.6931472067106204f, 1.0f);
  return p * bit_cast<V>((bit_cast<Mask<float>>(shifted) + 127) << 23);
}

inline Value<double> exp2(Value<double> x) {
  using V = Value<double>;
  const double magic = 0x1.8p52, ln2 = 0.693147180559945309417;
  x = x < -1023.0 ? fill(-1023.0) : x;
  const V shifted = x + magic, f = (x - (shifted - magic)) * ln2;
  const double c1 = 1.0, c2 = c1 / 2, c3 = c2 / 3, c4 = c3 / 4, c5 = c4 / 5, c6 = c5 / 6, c7 = c6 / 7, c8 = c7 / 8;
  const double c9 = c8 / 9, c10 = c9 / 10, c11 = c10 / 11, c12 = c11 / 12, c13 = c12 / 13;  // 1 / k!
  const V p = polynomial(f, fill(c13), c12, c11, c10, c9, c8, c7, c6, c5, c4, c3, c2, c1, 1.0);
  return p * bit_cast<V>((bit_cast<Mask<double>>(shifted) + 1023) << 52);
}

// log(1 + e) for e in [0, 1]: 2 artanh(e / (2 + e)).
inline Value<float> log1p(Value<float> e) {
  const Value<float> t = e / (e + 2.0f), u = t * t;
  return t * polynomial(u, fill(0.24409403261800017f), 0.21394267463373015f, 0.2862062339915301f, 0.39998694812163793f,
                        0.6666667925329393f, 2.0f);
}

inline Value<double> log1p(Value<double> e) {
  const Value<double> t = e / (e + 2.0), u = t * t;
  Value<double> sum = fill(1.0 / 37);  // of u^k / (2 k + 1)
  for (int k = 17; k >= 0; --k) sum = fused(u, sum, fill(1.0 / (2 * k + 1)));
  return 2.0 * t * sum;
}

}  // namespace SLR_ISA
}  // namespace slr
