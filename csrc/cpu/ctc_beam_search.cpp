#include "common/ctc_beam_search.h"

#include "cpu/lanes.h"

namespace slr {
namespace SLR_ISA {
namespace {

constexpr double kNothing = -__builtin_inf();

// log(exp a + exp b)
double either(double a, double b) {
  const double low = a < b ? a : b, high = a < b ? b : a;
  return low == kNothing ? high : high + __builtin_log1p(__builtin_exp(low - high));
}

struct Token {
  double log_prob;
  int32_t token;
};
bool before(const Token& a, const Token& b) {
  return a.log_prob != b.log_prob ? a.log_prob > b.log_prob : a.token < b.token;
}

// A prefix of the next frame: one that stays (token -1), or the child of the one at `place`.
struct Candidate {
  double score, in_blank, in_token, log_prob;
  int32_t place, token;
};
bool before(const Candidate& a, const Candidate& b) {
  if (a.score != b.score) return a.score > b.score;
  if ((a.token < 0) != (b.token < 0)) return a.token < 0;
  if (a.place != b.place) return a.place < b.place;
  return a.log_prob != b.log_prob ? a.log_prob > b.log_prob : a.token < b.token;
}

// The best `most` of all that are offered, as a heap whose first is the worst of them.
template <class Item>
struct Best {
  Item* items;
  int64_t most, size;

  bool takes(const Item& item) const { return size < most || before(item, items[0]); }
  void offer(const Item& item) {
    if (size < most) {
      int64_t at = size++;
      for (; at > 0 && before(items[(at - 1) / 2], item); at = (at - 1) / 2) items[at] = items[(at - 1) / 2];
      items[at] = item;
    } else if (before(item, items[0])) {
      sink(item, size);
    }
  }
  // Puts the item into the heap items[0, count) in place of the first.
  void sink(const Item& item, int64_t count) {
    int64_t at = 0;
    for (int64_t child = 1; child < count; child = 2 * at + 1) {
      if (child + 1 < count && before(items[child], items[child + 1])) ++child;
      if (before(items[child], item)) break;
      items[at] = items[child];
      at = child;
    }
    items[at] = item;
  }
  // Best first; no heap any more.
  void sort() {
    for (int64_t end = size; end-- > 1;) {
      const Item worst = items[0], last = items[end];
      sink(last, end);
      items[end] = worst;
    }
  }
};

// The prefixes of one clip as a tree; a prefix that falls out of the beam and comes back is the same node.
struct Tree {
  int32_t *parents, *tokens, *places, *table;  // places: in the beam, -1 outside
  int32_t nodes;
  int64_t slots;

  void clear() {
    std::memset(table, 0xFF, slots * sizeof(int32_t));
    nodes = 1;
    parents[0] = tokens[0] = places[0] = -1;
  }
  int32_t child(int32_t parent, int32_t token) {
    uint64_t at = (static_cast<uint64_t>(static_cast<uint32_t>(parent)) << 32 | static_cast<uint32_t>(token));
    at = at * 0x9E3779B97F4A7C15u >> 20;
    for (;; ++at) {
      int32_t& found = table[at & static_cast<uint64_t>(slots - 1)];
      if (found < 0) {
        parents[nodes] = parent, tokens[nodes] = token, places[nodes] = -1;
        return found = nodes++;
      }
      if (parents[found] == parent && tokens[found] == token) return found;
    }
  }
};

struct Scratch {
  Tree tree;
  Token* likely;                // the best tokens of a frame
  Candidate *prefixes, *next;   // [beam]
  int32_t *held, *held_next;    // [beam] nodes
  int32_t *children, *sibling;  // [beam] first child of a prefix among the prefixes, the next of the same parent; or -1
  int32_t* seen;                // [classes] the prefix that has been continued with a token, counted over all frames
  int64_t size;

  Scratch(const CtcBeamSearch& job, char* memory) {
    Parts parts(memory);
    tree.parents = parts.take<int32_t>(job.nodes);
    tree.tokens = parts.take<int32_t>(job.nodes);
    tree.places = parts.take<int32_t>(job.nodes);
    tree.table = parts.take<int32_t>(job.slots);
    tree.slots = job.slots;
    likely = parts.take<Token>(2 * job.beam);
    prefixes = parts.take<Candidate>(job.beam);
    next = parts.take<Candidate>(job.beam);
    held = parts.take<int32_t>(job.beam);
    held_next = parts.take<int32_t>(job.beam);
    children = parts.take<int32_t>(job.beam);
    sibling = parts.take<int32_t>(job.beam);
    seen = parts.take<int32_t>(job.classes);
    size = parts.size();
  }
};

// The most likely tokens of a frame but the blank. A prefix has less than `beam` children that are prefixes themselves
// and one that repeats its last token; of the others at most `beam` can get on: 2 beam tokens are all that matter.
template <class T>
int64_t find_likely(const T* frame, int64_t classes, int64_t blank, Best<Token> best) {
  constexpr int width = Simd<T>::width;
  const T nothing = static_cast<T>(kNothing);
  int64_t i = 0;
  const auto offer = [&](int64_t token) {
    if (token != blank && frame[token] > nothing)
      best.offer({static_cast<double>(frame[token]), static_cast<int32_t>(token)});
  };
  while (i < classes) {
    if (best.size == best.most) {
      const Value<T> limit = fill(static_cast<T>(best.items[0].log_prob));
      while (i + 2 * width <= classes && !any((read(frame + i) > limit) | (read(frame + i + width) > limit)))
        i += 2 * width;
    }
    const int64_t end = i + 2 * width < classes ? i + 2 * width : classes;
    for (; i < end; ++i) offer(i);
  }
  best.sort();
  return best.size;
}

template <class T>
void search(const CtcBeamSearch& job, int64_t clip, char* memory) {
  Scratch own(job, memory);
  Tree& tree = own.tree;
  tree.clear();
  std::memset(own.seen, 0xFF, job.classes * sizeof(int32_t));
  const T* frame = static_cast<const T*>(job.log_probs) + clip * job.frames * job.classes;
  own.prefixes[0] = {0.0, 0.0, kNothing, 0.0, -1, -1};
  own.held[0] = 0;
  tree.places[0] = 0;
  int64_t count = 1;
  int32_t turn = 0;
  for (int64_t t = 0; t < job.lengths[clip] && count > 0; ++t, frame += job.classes) {
    const int64_t likely = find_likely(frame, job.classes, job.blank, Best<Token>{own.likely, 2 * job.beam, 0});
    const double blank = static_cast<double>(frame[job.blank]);
    Best<Candidate> best = {own.next, job.beam, 0};
    const auto offer = [&](const Candidate& candidate) {
      if (candidate.score > kNothing) best.offer(candidate);
    };
    for (int64_t i = 0; i < count; ++i) own.children[i] = -1;
    for (int64_t i = 0; i < count; ++i) {
      const Candidate& prefix = own.prefixes[i];
      const int32_t node = own.held[i], last = tree.tokens[node];
      double again = kNothing;
      if (node > 0) {
        const double log_prob = static_cast<double>(frame[last]);
        again = prefix.in_token + log_prob;
        const int32_t parent = tree.places[tree.parents[node]];
        if (parent >= 0) {
          own.sibling[i] = own.children[parent];
          own.children[parent] = static_cast<int32_t>(i);
          const bool repeats = tree.tokens[own.held[parent]] == last;
          again = either(again, (repeats ? own.prefixes[parent].in_blank : own.prefixes[parent].score) + log_prob);
        }
      }
      const double in_blank = prefix.score + blank;
      offer({either(in_blank, again), in_blank, again, 0.0, static_cast<int32_t>(i), -1});
    }
    for (int64_t i = 0; i < count; ++i) {
      const Candidate& prefix = own.prefixes[i];
      const int32_t last = tree.tokens[own.held[i]], place = static_cast<int32_t>(i);
      if (turn == INT32_MAX) {
        std::memset(own.seen, 0xFF, job.classes * sizeof(int32_t));
        turn = 0;
      }
      ++turn;
      for (int32_t child = own.children[i]; child >= 0; child = own.sibling[child])
        own.seen[tree.tokens[own.held[child]]] = turn;
      if (last >= 0 && own.seen[last] != turn) {
        own.seen[last] = turn;
        const double log_prob = static_cast<double>(frame[last]), score = prefix.in_blank + log_prob;
        offer({score, kNothing, score, log_prob, place, last});
      }
      for (int64_t k = 0; k < likely; ++k) {
        const int32_t token = own.likely[k].token;
        if (own.seen[token] == turn) continue;
        const double score = prefix.score + own.likely[k].log_prob;
        const Candidate candidate = {score, kNothing, score, own.likely[k].log_prob, place, token};
        if (!best.takes(candidate)) break;
        offer(candidate);
      }
    }
    best.sort();
    for (int64_t i = 0; i < best.size; ++i) {
      const int32_t from = own.held[own.next[i].place], token = own.next[i].token;
      own.held_next[i] = token < 0 ? from : tree.child(from, token);
    }
    for (int64_t i = 0; i < count; ++i) tree.places[own.held[i]] = -1;
    count = best.size;
    for (int64_t i = 0; i < count; ++i) tree.places[own.held_next[i]] = static_cast<int32_t>(i);
    Candidate* const prefixes = own.prefixes;
    own.prefixes = own.next, own.next = prefixes;
    int32_t* const held = own.held;
    own.held = own.held_next, own.held_next = held;
  }
  int64_t* const tokens = job.tokens + clip * job.frames;
  int64_t length = 0;
  const int32_t found = count > 0 ? own.held[0] : 0;
  for (int32_t node = found; node > 0; node = tree.parents[node]) ++length;
  for (int64_t i = length; i < job.frames; ++i) tokens[i] = -1;
  int64_t at = length;
  for (int32_t node = found; node > 0; node = tree.parents[node]) tokens[--at] = tree.tokens[node];
  job.counts[clip] = length;
  job.scores[clip] = count > 0 ? own.prefixes[0].score : kNothing;
}

}  // namespace

int64_t ctc_beam_search_scratch(const CtcBeamSearch& job) { return Scratch(job, nullptr).size; }

void ctc_beam_search(const CtcBeamSearch& job, int64_t clip, char* scratch) {
  if (job.dtype == SLR_F64)
    search<double>(job, clip, scratch);
  else
    search<float>(job, clip, scratch);
}

}  // namespace SLR_ISA
}  // namespace slr
