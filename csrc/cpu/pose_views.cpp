#include "cpu/clips.h"

namespace slr {
namespace SLR_ISA {
namespace {

// xy[late] - xy[early], which are null where that is undefined and zero.
template <class S>
struct Difference {
  using T = ComputeOf<S>;
  const S *late, *early;
  Difference(const PoseViews& job, const Places<T>& found, int64_t frame, const S* xy) : late(nullptr), early(nullptr) {
    const int64_t end = frame + (job.direction == SLR_FORWARD);
    if (end - 1 < found.first || end >= found.last) return;
    late = xy + end * 2 * job.changes.joints;
    early = late - 2 * job.changes.joints;
  }
  inline __attribute__((always_inline)) Value<T> operator()(int64_t c, int64_t some) const {
    return late == nullptr ? Value<T>{} : load_some(late + c, some) - load_some(early + c, some);
  }
};

// Which joints a part of a view consists of, 64 to a word, for clips that are not swapped and for those that are.
struct Seen {
  uint64_t *members, *frame;  // [2][parts][words]; of one frame [words]
  int64_t parts, words;

  Seen(Parts* memory, int64_t joints, int64_t parts_) : parts(parts_), words((joints + 63) / 64) {
    members = memory->take<uint64_t>(2 * parts * words), frame = memory->take<uint64_t>(words);
  }
  void set(const Changes& changes) const {
    std::memset(members, 0, 2 * parts * words * sizeof(uint64_t));
    for (int64_t v = 0; v < changes.joints; ++v) {
      const int64_t from = changes.swap_index[v];
      members[changes.part[v] * words + v / 64] |= uint64_t{1} << v % 64;
      members[(parts + changes.part[v]) * words + from / 64] |= uint64_t{1} << from % 64;
    }
  }
  template <class S>
  void store(const S* confidence, int64_t joints, bool swap, uint8_t* visible) const {
    constexpr int64_t width = Lanes<S>::width;
    uint64_t word = 0;
    for (int64_t v = 0; v < joints; v += width) {
      const int64_t some = least(width, joints - v), back = joints >= width ? width - some : 0;
      const Value<ComputeOf<S>> sure = load_some(confidence + v - back, some + back);
      word |= set_lanes<ComputeOf<S>>(sure > 0) >> back << v % 64;
      if ((v + width) % 64 != 0 && v + width < joints) continue;
      frame[v / 64] = word;
      word = 0;
    }
    for (int64_t p = 0; p < parts; ++p) {
      const uint64_t* const part = members + (swap ? parts + p : p) * words;
      uint64_t found = 0;
      for (int64_t i = 0; i < words; ++i) found |= frame[i] & part[i];
      visible[p] = found != 0;
    }
  }
};

template <class S>
struct Scratch {
  using T = ComputeOf<S>;
  Change<T> change;
  Swap order[2];  // of a clip that is not swapped, and of one that is
  Seen seen;
  S *points, *motion, *sure;  // of a frame whose joints are then swapped
  Scratch(Parts* memory, int64_t joints, int64_t parts)
      : change(memory, joints),
        order{{memory, joints}, {memory, joints}},
        seen(memory, joints, parts),
        points(memory->take<S>(2 * padded(joints))),
        motion(memory->take<S>(2 * padded(joints))),
        sure(memory->take<S>(padded(joints))) {}
};

// Of a frame between two others whose joints all move by one map; direction as that of the motion, or -1 for none.
template <class S, int direction, bool keeps_all>
inline void quick_frame(const Change<ComputeOf<S>>& change, const Swap& order, int64_t joints, const S* sure,
                        const S* points, ComputeOf<S> fraction, S* confidence_out, S* xy_out, S* motion_out) {
  using T = ComputeOf<S>;
  constexpr int64_t width = Lanes<S>::width;
  const int64_t row = 2 * joints;
  const Map<T> map = change.map(0);
  for (int64_t k = 0; k < order.block_count; ++k) {
    const int64_t from = order.blocks[k].from, to = order.blocks[k].to;
    const Value<T> a = load(sure + from), confidence = a + (load(sure + joints + from) - a) * fraction;
    const Mask<T> seen = confidence > 0;
    store(confidence_out + to, keeps_all ? confidence : where<T>(read_mask<T>(change.joints + from), confidence));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const int64_t c = 2 * from + half * width, d = 2 * to + half * width;
      const Value<T> here = load(points + c), next = load(points + row + c), step = next - here;
      const Value<T> x = here + step * fraction, mapped = map.template apply<true>(x);
      const Value<T> y = doubled<T>(seen, half) ? mapped : x;
      const Mask<T> kept = keeps_all ? ~Mask<T>{} : read_mask<T>(change.kept + c);
      store(xy_out + d, where<T>(kept, y));
      if (direction < 0) continue;
      Value<T> move = step, second = step;
      if (direction == SLR_BACKWARD)
        move = here - load(points - row + c);
      else
        second = load(points + 2 * row + c) - next;
      store(motion_out + d, where<T>(kept, map.template apply<false>(move + (second - move) * fraction)));
    }
  }
}

template <class S>
struct Views {
  using T = ComputeOf<S>;
  const PoseViews& job;
  Scratch<S> scratch;
  const S *const xy, *const confidence;

  Views(const PoseViews& job_, Parts* parts)
      : job(job_),
        scratch(parts, job.changes.joints, job.changes.parts),
        xy(static_cast<const S*>(job.xy)),
        confidence(static_cast<const S*>(job.confidence)) {
    for (int swapped = 0; swapped < 2; ++swapped)
      scratch.order[swapped].set(swapped ? job.changes.swap_index : nullptr, job.changes.joints, Lanes<S>::width);
    scratch.seen.set(job.changes);
  }

  template <int direction>
  inline void frame(const Places<T>& found, int64_t window, int64_t at) const {
    const Changes& changes = job.changes;
    const int64_t joints = changes.joints, row = 2 * joints;
    const bool swap = changes.swap[window] != 0;
    const Change<T>& change = scratch.change;
    S* const xy_out = static_cast<S*>(job.xy_out) + at * row;
    S* const motion_out = static_cast<S*>(job.motion_out) + at * row;
    S* const confidence_out = static_cast<S*>(job.confidence_out) + at * joints;
    const S *const sure = confidence + found.before * joints, *const points = xy + found.before * row;
    scratch.seen.store(confidence + found.nearest * joints, joints, swap, job.visible + at * changes.parts);
    const bool inner =
        direction < 0 || (direction == SLR_BACKWARD ? found.before > found.first : found.before + 2 < found.last);
    if (inner && found.blended && change.uniform && change.moves_all && scratch.order[swap].in_blocks) {
      const auto quick = change.keeps_all ? quick_frame<S, direction, true> : quick_frame<S, direction, false>;
      return quick(change, scratch.order[swap], joints, sure, points, found.fraction, confidence_out, xy_out,
                   motion_out);
    }
    change_confidence(change, joints, Blend<S>{sure, sure + joints, found.blended, found.fraction},
                      swap ? scratch.sure : confidence_out);
    change_points<S, true>(change, change.now, row, Blend<S>{points, points + row, found.blended, found.fraction},
                           swap ? scratch.points : xy_out);
    if (direction >= 0) {
      const Difference<S> before(job, found, found.before, xy), after(job, found, found.before + 1, xy);
      change_points<S, false>(
          change, change.moved, row,
          [&](int64_t c, int64_t some) {
            const Value<T> a = before(c, some);
            return found.blended ? a + (after(c, some) - a) * found.fraction : a;
          },
          swap ? scratch.motion : motion_out);
    }
    if (!swap) return;
    scratch.order[1].template apply<2>(scratch.points, xy_out);
    scratch.order[1].template apply<1>(scratch.sure, confidence_out);
    if (direction >= 0) scratch.order[1].template apply<2>(scratch.motion, motion_out);
  }

  template <int direction>
  void frames(int64_t begin, int64_t end) {
    int64_t window = 0;
    const auto of_window = [&](int64_t next) { scratch.change.set(job.changes, window = next); };
    in_windows<T>(job.windows, begin, end, of_window,
                  [&](const Places<T>& found, int64_t at) { frame<direction>(found, window, at); });
  }
};

template <class S>
void frames_of(const PoseViews& job, int64_t begin, int64_t end, void* memory) {
  Parts parts(static_cast<char*>(memory));
  Views<S> views(job, &parts);
  if (job.motion_out == nullptr)
    views.template frames<-1>(begin, end);
  else if (job.direction == SLR_BACKWARD)
    views.template frames<SLR_BACKWARD>(begin, end);
  else
    views.template frames<SLR_FORWARD>(begin, end);
}

}  // namespace

void pose_views(const PoseViews& job, int64_t begin, int64_t end, void* scratch) {
  SLR_SWITCH_DTYPE(job.dtype, frames_of, job, begin, end, scratch)
}

}  // namespace SLR_ISA
}  // namespace slr
