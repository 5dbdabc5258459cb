#include "common/channel_mask.h"

#include "cpu/lanes.h"

namespace slr {
namespace SLR_ISA {
namespace {

// Copies `count` channels of every frame to rows of kChannelTile, the rest of which is 0.
template <class S, class T>
void gather(const S* z, int64_t frames, int64_t channels, int64_t count, T* values) {
  constexpr int width = Lanes<S>::width;
  for (int64_t t = 0; t < frames; ++t, z += channels, values += kChannelTile) {
    int64_t c = 0;
    for (; c + width <= count; c += width) write(values + c, load(z + c));
    for (; c < count; ++c) values[c] = to_compute(z[c]);
    for (; c < kChannelTile; ++c) values[c] = 0;
  }
}

// The variance of one vector of channels, about their mean.
template <class T>
Value<T> variance_of(const T* values, int64_t frames) {
  if (frames < 2) return Value<T>{};
  Value<T> sum = {}, squares = {};
  for (int64_t t = 0; t < frames; ++t) sum += read(values + t * kChannelTile);
  const Value<T> mean = sum / static_cast<T>(frames);
  for (int64_t t = 0; t < frames; ++t) {
    const Value<T> distance = read(values + t * kChannelTile) - mean;
    squares += distance * distance;
  }
  return squares / static_cast<T>(frames - 1);
}

template <class S>
void tile(const ChannelMask& job, int64_t clip, int64_t first, void* scratch) {
  using T = decltype(to_compute(S{}));
  constexpr int width = Lanes<S>::width;
  const int64_t left = job.channels - first, count = left < kChannelTile ? left : kChannelTile;
  const int64_t start = clip * job.frames * job.channels + first, at = clip * job.channels + first;
  T* const values = static_cast<T*>(scratch);
  gather(static_cast<const S*>(job.z) + start, job.frames, job.channels, count, values);
  const Value<T> least = fill(static_cast<T>(job.least[clip]));
  Mask<T> kept[kChannelTile / width];
  alignas(64) T variances[kChannelTile];
  for (int64_t c = 0; c < kChannelTile; c += width) {
    const Value<T> variance = variance_of(values + c, job.frames);
    kept[c / width] = variance >= least;
    write(variances + c, variance);
  }
  if (job.variance != nullptr) std::memcpy(static_cast<T*>(job.variance) + at, variances, count * sizeof(T));
  if (job.keep != nullptr)
    for (int64_t c = 0; c < count; ++c) job.keep[at + c] = kept[c / width][c % width] != 0;
  if (job.masked == nullptr) return;
  S* to = static_cast<S*>(job.masked) + start;
  for (int64_t t = 0; t < job.frames; ++t, to += job.channels) {
    const T* const row = values + t * kChannelTile;
    const bool streams = job.past_cache && reinterpret_cast<uintptr_t>(to) % sizeof(typename Lanes<S>::Stored) == 0;
    int64_t c = 0;
    for (; c + width <= count; c += width) {
      const Value<T> value = kept[c / width] ? read(row + c) : Value<T>{};
      if (streams)
        stream(to + c, value);
      else
        store(to + c, value);
    }
    for (; c < count; ++c) from_compute(kept[c / width][c % width] != 0 ? row[c] : 0, to + c);
  }
}

}  // namespace

void channel_mask(const ChannelMask& job, int64_t begin, int64_t end, void* scratch) {
  const int64_t tiles = channel_tiles(job.channels);
  for (int64_t i = begin; i < end; ++i)
    SLR_SWITCH_DTYPE(job.dtype, tile, job, i / tiles, i % tiles * kChannelTile, scratch)
  if (job.past_cache) fence();
}

}  // namespace SLR_ISA
}  // namespace slr
