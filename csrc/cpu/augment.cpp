#include "cpu/clips.h"

namespace slr {
namespace SLR_ISA {
namespace {

template <class S>
struct Scratch {
  using T = ComputeOf<S>;
  Change<T> change;
  Swap swap;
  S *points, *sure;  // of a frame whose joints are then swapped
  Scratch(Parts* parts, int64_t joints)
      : change(parts, joints),
        swap(parts, joints),
        points(parts->take<S>(2 * padded(joints))),
        sure(parts->take<S>(padded(joints))) {}
};

template <class S>
void frames_of(const Augment& job, int64_t begin, int64_t end, void* memory) {
  const Changes& changes = job.changes;
  const int64_t joints = changes.joints;
  Parts parts(static_cast<char*>(memory));
  Scratch<S> scratch(&parts, joints);
  scratch.swap.set(changes.swap_index, joints, Lanes<S>::width);
  for (int64_t at = begin; at < end; ++at) {
    const int64_t clip = at / job.frames;
    if (at == begin || at % job.frames == 0) scratch.change.set(changes, clip);
    const S* const x = static_cast<const S*>(job.x) + at * 2 * joints;
    const S* const confidence = static_cast<const S*>(job.confidence) + at * joints;
    S* const x_out = static_cast<S*>(job.x_out) + at * 2 * joints;
    S* const confidence_out = static_cast<S*>(job.confidence_out) + at * joints;
    const bool swap = changes.swap[clip] != 0;
    change_confidence(
        scratch.change, joints, [&](int64_t v, int64_t some) { return load_some(confidence + v, some); },
        swap ? scratch.sure : confidence_out);
    change_points<S, true>(
        scratch.change, scratch.change.now, 2 * joints, [&](int64_t c, int64_t some) { return load_some(x + c, some); },
        swap ? scratch.points : x_out);
    if (!swap) continue;
    scratch.swap.template apply<2>(scratch.points, x_out);
    scratch.swap.template apply<1>(scratch.sure, confidence_out);
  }
}

}  // namespace

void augment(const Augment& job, int64_t begin, int64_t end, void* scratch) {
  SLR_SWITCH_DTYPE(job.dtype, frames_of, job, begin, end, scratch)
}

}  // namespace SLR_ISA
}  // namespace slr
