// Frames of packed clips: where a window is read, blends of two frames, and the change of a frame's joints. Products
// and sums are rounded one by one, so that every backend has the same bits. For files in cpu/ only (see isa.h).
#pragma once

#include "common/clips.h"
#include "common/memory.h"
#include "cpu/panels.h"

namespace slr {
namespace SLR_ISA {

// Calls body(first, count) for vectors that cover [0, size); the last one overlaps the one before it where it can.
template <int width, class Body>
inline __attribute__((always_inline)) void in_vectors(int64_t size, const Body& body) {
  int64_t c = 0;
  for (; c + width <= size; c += width) body(c, width);
  if (c == size) return;
  if (size >= width)
    body(size - width, width);
  else
    body(0, size);
}

// Where the frames of one window are read, one after another: frame i at max((2 i + 1) length - out, 0) / (2 out).
template <class T>
class Places {
 public:
  int64_t first, last;      // the frames of the clip
  int64_t before, nearest;  // frames of all clips
  bool blended;             // with the frame after `before`
  T fraction;               // so much of the way to it

  Places(const Windows& windows, int64_t window, int64_t i) : out_(windows.out), length_(windows.length[window]) {
    const int64_t clip = window % windows.clips, unit = 2 * out_, position = (2 * i + 1) * length_ - out_;
    first = windows.offsets[clip], last = windows.offsets[clip + 1];
    begin_ = first + windows.start[window];
    step_ = position < 0 ? -1 : position / unit, rest_ = position - step_ * unit;
    step_each_ = 2 * length_ / unit, rest_each_ = 2 * length_ % unit;
    near_ = i * length_ / out_, over_ = i * length_ % out_;
    near_each_ = length_ / out_, over_each_ = length_ % out_;
    show();
  }

  void next() {
    step_ += step_each_, rest_ += rest_each_;
    if (rest_ >= 2 * out_) rest_ -= 2 * out_, ++step_;
    near_ += near_each_, over_ += over_each_;
    if (over_ >= out_) over_ -= out_, ++near_;
    show();
  }

 private:
  int64_t out_, length_, begin_;
  int64_t step_, rest_, step_each_, rest_each_;  // position = step + rest / (2 out), before it is cut off at 0
  int64_t near_, over_, near_each_, over_each_;  // i length / out = near + over / out

  void show() {
    before = begin_ + (step_ < 0 ? 0 : step_), nearest = begin_ + near_;
    blended = step_ >= 0 && rest_ != 0 && step_ + 1 < length_;
    fraction = static_cast<T>(rest_) / static_cast<T>(2 * out_);
  }
};

// body(places, frame of the result) for the frames [begin, end) of all windows, and of_window(window) before each one.
template <class T, class OfWindow, class Body>
inline void in_windows(const Windows& windows, int64_t begin, int64_t end, const OfWindow& of_window,
                       const Body& body) {
  for (int64_t at = begin; at < end;) {
    const int64_t window = at / windows.out, after = (window + 1) * windows.out, last = after < end ? after : end;
    Places<T> places(windows, window, at - window * windows.out);
    of_window(window);
    for (; at < last; ++at, places.next()) body(places, at);
  }
}

template <class S>
struct Blend {
  using T = ComputeOf<S>;
  const S *before, *after;
  bool blended;
  T fraction;
  inline __attribute__((always_inline)) Value<T> operator()(int64_t c, int64_t some) const {
    const Value<T> a = load_some(before + c, some);
    return blended ? a + (load_some(after + c, some) - a) * fraction : a;
  }
};

inline int64_t padded(int64_t joints) { return (joints + 15) / 16 * 16; }

// x[index[0]], x[index[1]] ...
template <class V, class I>
inline V shuffled(V x, I index) {
#if defined(__clang__)
  V y;
  for (unsigned i = 0; i < sizeof(I) / sizeof(index[0]); ++i) y[i] = x[index[i]];
  return y;
#else
  return __builtin_shuffle(x, index);
#endif
}

template <class T>
inline Mask<T> lane_numbers() {
  Mask<T> numbers;
#pragma GCC unroll 16
  for (int i = 0; i < Simd<T>::width; ++i) numbers[i] = i;
  return numbers;
}

template <class T>
inline Mask<T> read_mask(const Bits<T>* from) {
  Mask<T> mask;
  std::memcpy(&mask, from, sizeof mask);
  return mask;
}

template <class T>
inline Value<T> where(Mask<T> mask, Value<T> value) {
  return bit_cast<Value<T>>(mask & bit_cast<Mask<T>>(value));
}

// Bit i: lane i of a mask is set.
template <class T>
inline uint64_t set_lanes(Mask<T> mask) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return _mm512_movepi32_mask(bit_cast<__m512i>(mask));
  else
    return _mm512_movepi64_mask(bit_cast<__m512i>(mask));
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4)
    return _mm256_movemask_ps(bit_cast<__m256>(mask));
  else
    return _mm256_movemask_pd(bit_cast<__m256d>(mask));
#else
  uint64_t bits = 0;
  for (int i = 0; i < Simd<T>::width; ++i) bits |= static_cast<uint64_t>(mask[i] & 1) << i;
  return bits;
#endif
}

// A linear map about a center for the coordinates x0, y0, x1, y1 ...: y = diagonal (x - center) + across (the other
// coordinate of x - center) + center.
template <class T>
struct Map {
  Value<T> diagonal, across, center;
  template <bool centered>
  inline __attribute__((always_inline)) Value<T> apply(Value<T> x) const {
    const Value<T> zero = {}, c = centered ? center : zero, away = x - c;
    return (diagonal * away + across * shuffled(away, lane_numbers<T>() ^ 1)) + c;
  }
};

// Every lane of the first (0) or second (1) half of a mask twice: of joints, for their coordinates.
template <class T>
inline Mask<T> doubled(Mask<T> mask, int half) {
  return shuffled(mask, (lane_numbers<T>() >> 1) + half * (Simd<T>::width / 2));
}

// The change of one clip's frames, coordinate by coordinate, before joints are swapped.
template <class T>
struct Change {
  T *diagonal, *across, *center;        // see Map
  Bits<T>*moved, *kept, *joints, *now;  // all bits or none; `now`: moved and seen in this frame; `joints`: kept [V]
  bool uniform = false, moves_all = false, keeps_all = false;  // the same for every joint

  Change(Parts* parts, int64_t joints_) {
    const int64_t two = 2 * padded(joints_);
    diagonal = parts->take<T>(two), across = parts->take<T>(two), center = parts->take<T>(two);
    moved = parts->take<Bits<T>>(two), kept = parts->take<Bits<T>>(two), now = parts->take<Bits<T>>(two);
    joints = parts->take<Bits<T>>(two / 2);
  }

  void set(const Changes& from, int64_t clip) {
    uniform = moves_all = keeps_all = true;
    for (int64_t v = 0; v < padded(from.joints); ++v) {
      const int64_t joint = v < from.joints ? v : 0, part = clip * from.parts + from.part[joint];
      const T *const linear = static_cast<const T*>(from.linear) + 4 * part, *const at =
                                                                                 static_cast<const T*>(from.center) +
                                                                                 2 * part;
      const bool affected = from.affected[clip * from.joints + joint] != 0;
      const bool drop = from.drop[clip * from.joints + joint] != 0;
      diagonal[2 * v] = linear[0], across[2 * v] = linear[1];
      across[2 * v + 1] = linear[2], diagonal[2 * v + 1] = linear[3];
      center[2 * v] = at[0], center[2 * v + 1] = at[1];
      uniform &= linear[0] == diagonal[0] && linear[1] == across[0] && linear[2] == across[1] &&
                 linear[3] == diagonal[1] && at[0] == center[0] && at[1] == center[1];
      moves_all &= affected, keeps_all &= !drop;
      moved[2 * v] = moved[2 * v + 1] = -static_cast<Bits<T>>(affected);
      joints[v] = kept[2 * v] = kept[2 * v + 1] = -static_cast<Bits<T>>(!drop);
    }
  }

  inline __attribute__((always_inline)) Map<T> map(int64_t c) const {
    return {read(diagonal + c), read(across + c), read(center + c)};
  }
};

// The confidences of one frame, source(v, some): what is kept of them, and which coordinates move now.
template <class S, class Read>
inline void change_confidence(const Change<ComputeOf<S>>& change, int64_t joints, const Read& source, S* to) {
  using T = ComputeOf<S>;
  constexpr int width = Lanes<S>::width;
  in_vectors<width>(joints, [&](int64_t v, int64_t some) {
    const Value<T> sure = source(v, some);
    const Mask<T> seen = sure > 0;
    for (int half = 0; half < 2; ++half) {
      const int64_t at = 2 * v + half * width;
      const Mask<T> now = doubled<T>(seen, half) & read_mask<T>(change.moved + at);
      std::memcpy(change.now + at, &now, sizeof now);
    }
    store_some(to + v, where<T>(read_mask<T>(change.joints + v), sure), some);
  });
}

template <class S, bool centered, bool uniform, bool keeps_all, class Read>
inline void change_points_of(const Change<ComputeOf<S>>& change, const Bits<ComputeOf<S>>* moved, int64_t count,
                             const Read& source, S* to) {
  using T = ComputeOf<S>;
  const Map<T> first = change.map(0);
  in_vectors<Lanes<S>::width>(count, [&](int64_t c, int64_t some) {
    const Map<T> map = uniform ? first : change.map(c);
    const Value<T> x = source(c, some), mapped = map.template apply<centered>(x);
    const Value<T> y = read_mask<T>(moved + c) ? mapped : x;
    store_some(to + c, keeps_all ? y : where<T>(read_mask<T>(change.kept + c), y), some);
  });
}

// The coordinates of one frame, source(c, some), those in `moved` mapped about the center, or about zero.
template <class S, bool centered, class Read>
inline void change_points(const Change<ComputeOf<S>>& change, const Bits<ComputeOf<S>>* moved, int64_t count,
                          const Read& source, S* to) {
  if (!change.uniform)
    change_points_of<S, centered, false, false>(change, moved, count, source, to);
  else if (change.keeps_all)
    change_points_of<S, centered, true, true>(change, moved, count, source, to);
  else
    change_points_of<S, centered, true, false>(change, moved, count, source, to);
}

// A permutation of joints as runs of neighbours, and vectors of `width` joints that cover it, each where it is and
// where it goes. They may write over joints before their run, which those after them in the list then write.
struct Swap {
  struct Run {
    int64_t to, from, count;
  }* runs;
  struct Block {
    int64_t from, to;
  }* blocks;
  int64_t run_count = 0, block_count = 0;
  bool in_blocks = true;  // there are such vectors

  Swap(Parts* parts, int64_t joints) : runs(parts->take<Run>(joints)), blocks(parts->take<Block>(2 * joints)) {}

  void set(const int64_t* index, int64_t joints, int64_t width) {
    for (int64_t v = 0; v < joints; ++v) {
      const int64_t from = index == nullptr ? v : index[v];
      if (run_count > 0 && from == runs[run_count - 1].from + runs[run_count - 1].count)
        ++runs[run_count - 1].count;
      else
        runs[run_count++] = {v, from, 1};
    }
    for (int64_t i = run_count - 1; i >= 0; --i)
      for (int64_t end = runs[i].count; end > 0; end -= width) {
        const int64_t start = end < width && runs[i].count >= width ? 0 : end - width;
        blocks[block_count++] = {runs[i].from + start, runs[i].to + start};
        in_blocks &= runs[i].from + start >= 0 && runs[i].to + start >= 0;
      }
  }

  // A frame in its new order; a joint has `size` elements.
  template <int size, class S>
  inline void apply(const S* from, S* to) const {
    for (int64_t i = 0; i < run_count; ++i) {
      const S* const source = from + runs[i].from * size;
      S* const target = to + runs[i].to * size;
      in_vectors<Lanes<S>::width>(runs[i].count * size, [&](int64_t c, int64_t some) {
        if (some == Lanes<S>::width)
          std::memcpy(target + c, source + c, Lanes<S>::width * sizeof(S));
        else
          std::memcpy(target + c, source + c, some * sizeof(S));
      });
    }
  }
};

}  // namespace SLR_ISA
}  // namespace slr
