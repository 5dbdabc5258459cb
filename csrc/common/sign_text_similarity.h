// The similarity of sign sequences and texts: a block of sign rows against a group of texts.
#pragma once

#include "common/gcn.h"

namespace slr {

constexpr int64_t kPairSide = 1024;  // the most sign rows of a block, and words of a group, unless one text has more
constexpr int64_t kPairBytes = 4 << 20;  // of their scores

// Of all sequences only the rows that are there, one after another: `lanes` sign rows, the last of them without a row
// so that they fill panels, and `tile` words, a multiple of kRowStep. T is the compute type of dtype, E the type of the
// operands and W the channels of a panel (see cpu/panels.h).
struct SignText {
  int32_t dtype;
  int64_t d;
  double row_temperature;

  const void* sign;  // [any][d], rows sign_rows [rows]
  const int64_t* sign_rows;
  const int64_t* clips;  // [rows] of each row
  const void* shares;    // [any clip] T, 1 / rows of the clip
  int64_t rows, lanes;
  void* sign_columns;  // [lanes / W][even d][W] E
  void* sign_panels;   // [d / W][lanes][W] E, woven if in pairs; or null

  const void* text;  // [any][d], rows text_rows [words]
  const int64_t* text_rows;
  const int64_t* bounds;   // [texts + 1] the words of each text
  const int64_t* columns;  // [texts] of the similarity
  int64_t texts, words, tile;
  void* text_panels;  // [d / W][tile][W] E
  void* text_woven;   // the same, woven; or null if not in pairs

  void* means;   // [texts][lanes] T, or null: of the scores of a row, by their softmax
  void* slopes;  // [lanes / W][tile][W] T, or null: d similarity / d score

  const void* grad;  // [any clip][grad_stride] T, or null in the forward pass
  int64_t grad_stride;
  void *left, *woven;           // [lanes / W][tile][W] E: d result / d score, and woven if in pairs
  void *grad_sign, *grad_text;  // [any][d] T, or null
  bool add_sign, add_text;      // to what is there
};

constexpr int64_t kWordChunk = 64;
static inline int64_t chunks_of(int64_t words) { return (words + kWordChunk - 1) / kWordChunk; }

SLR_DECLARE_KERNEL(void pack_signs(const SignText& job, int64_t begin, int64_t end))  // lanes / W
SLR_DECLARE_KERNEL(void pack_texts(const SignText& job, int64_t begin, int64_t end))  // tile / kRowStep
// Panels of lanes: means and slopes in the forward pass, else left, woven and grad_sign. scratch: [2][tile][W] T.
SLR_DECLARE_KERNEL(void compare(const SignText& job, int64_t begin, int64_t end, void* scratch))
// Pairs (chunk of words, panel of d), d first: grad_text.
SLR_DECLARE_KERNEL(void add_text_grad(const SignText& job, int64_t begin, int64_t end))

}  // namespace slr
