// The border of the k largest scores of every lane, without sorting: a search for the value that k scores reach, by
// interpolation between counts and, every third time, by halving what is left of the number line; so it ends after at
// most three times as many counts as a T has bits. For files in cpu/ only (see isa.h).
#pragma once

#include "cpu/lanes.h"

namespace slr {
namespace SLR_ISA {

// The scores that count are those above `border`, and of those equal to it the ones before row `tie_end`.
template <class T>
struct Border {
  T border, top;    // top: the largest score
  int64_t tie_end;  // n where all ties count
  bool has_nan;     // a score is NaN; NaN counts as inf
};

// Integers in the order of the numbers.
template <class T>
inline Bits<T> ordered(T x) {
  constexpr Bits<T> rest = ~(static_cast<Bits<T>>(1) << (8 * sizeof(T) - 1));
  const Bits<T> bits = bit_cast<Bits<T>>(x);
  return bits < 0 ? bits ^ rest : bits;
}
template <class T>
inline T number(Bits<T> key) {
  constexpr Bits<T> rest = ~(static_cast<Bits<T>>(1) << (8 * sizeof(T) - 1));
  return bit_cast<T>(key < 0 ? key ^ rest : key);
}

// count[lane] = rows whose score is not below (or, with `above`, is above) the lane's limit.
template <class T, bool above>
inline void count_rows(const T* scores, int64_t n, const T* limits, int64_t* count) {
  constexpr int width = Simd<T>::width;
  const Value<T> limit = read(limits);
  std::memset(count, 0, width * sizeof(int64_t));
  for (int64_t begin = 0; begin < n; begin += 1 << 30) {
    const int64_t end = begin + (1 << 30) < n ? begin + (1 << 30) : n;
    Mask<T> some[4] = {};
    int64_t i = begin;
    const auto add = [&](Mask<T>& sum) {
      const Value<T> score = read(scores + i++ * width);
      sum -= above ? score > limit : ~(score < limit);
    };
    while (i + 4 <= end) add(some[0]), add(some[1]), add(some[2]), add(some[3]);
    while (i < end) add(some[0]);
    for (int lane = 0; lane < width; ++lane)
      for (const Mask<T>& part : some) count[lane] += part[lane];
  }
}

// Where between low and high, in ]low, high], to count next.
template <class T>
inline T pivot(T low, T high, double share, bool halve) {
  const Bits<T> first = ordered(low), last = ordered(high);
  const T guess = static_cast<T>(low + (high - low) * share);
  if (!halve && guess > low && guess <= high) return guess;
  const Unsigned<T> gap = static_cast<Unsigned<T>>(last) - static_cast<Unsigned<T>>(first);
  return number<T>(static_cast<Bits<T>>(static_cast<Unsigned<T>>(first) + gap / 2 + gap % 2));
}

// Scores: [n][width], n >= 1; k in [1, n].
template <class T>
inline void find_borders(const T* scores, int64_t n, int64_t k, Border<T>* found) {
  constexpr int width = Simd<T>::width;
  const T infinity = static_cast<T>(__builtin_inf());
  T low[width], high[width], next[width];
  int64_t at_low[width], past_high[width], count[width];
  {
    Value<T> smallest = fill(infinity), largest = -smallest;
    Mask<T> nan = {};
    for (int64_t i = 0; i < n; ++i) {
      const Value<T> score = read(scores + i * width);
      smallest = score < smallest ? score : smallest;
      largest = larger(largest, score);
      nan |= score != score;
    }
    for (int lane = 0; lane < width; ++lane) {
      low[lane] = smallest[lane];
      high[lane] = nan[lane] ? infinity : largest[lane];
      at_low[lane] = n, past_high[lane] = 0;
      found[lane] = {low[lane], high[lane], n, nan[lane] != 0};
    }
  }
  const auto done = [&](int lane) { return at_low[lane] == k || !(low[lane] < high[lane]); };
  for (int turn = 0;; ++turn) {
    bool all = true;
    for (int lane = 0; lane < width; ++lane) {
      next[lane] = low[lane];
      if (done(lane)) continue;
      all = false;
      const double share = (at_low[lane] - k + 0.5) / static_cast<double>(at_low[lane] - past_high[lane]);
      next[lane] = pivot(low[lane], high[lane], share, turn % 3 == 2);
    }
    if (all) break;
    count_rows<T, false>(scores, n, next, count);
    for (int lane = 0; lane < width; ++lane) {
      if (done(lane)) continue;
      if (count[lane] >= k) {
        low[lane] = next[lane], at_low[lane] = count[lane];
      } else {
        high[lane] = number<T>(ordered(next[lane]) - 1), past_high[lane] = count[lane];
        if (high[lane] < low[lane]) high[lane] = low[lane];
      }
    }
  }
  bool ties = false;
  for (int lane = 0; lane < width; ++lane) {
    found[lane].border = low[lane];
    ties = ties || at_low[lane] != k;
  }
  if (!ties) return;
  count_rows<T, true>(scores, n, low, count);
  for (int lane = 0; lane < width; ++lane) {
    if (at_low[lane] == k) continue;
    const bool finite = low[lane] < infinity;
    int64_t left = k - (finite ? count[lane] : 0), i = 0;
    if (finite && found[lane].has_nan)  // those are above every number, but no comparison says so
      for (int64_t j = 0; j < n; ++j) left -= scores[j * width + lane] != scores[j * width + lane];
    for (; left > 0; ++i) {
      const T score = scores[i * width + lane];
      left -= score == low[lane] || (!finite && score != score);
    }
    found[lane].tie_end = i;
  }
}

}  // namespace SLR_ISA
}  // namespace slr
