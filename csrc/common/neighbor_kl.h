// KL divergence over the teacher's nearest bank rows, for as many batch rows as there is scratch memory for.
#pragma once

#include "common/bank.h"
#include "common/isa.h"

namespace slr {

// Five steps, each a kernel: teacher scores, per segment of the bank; the border of the k nearest, per column of
// scores; student scores and the sums of both softmaxes, per segment; loss, per block; gradient, per segment and then
// per block.
struct NeighborKl {
  int32_t dtype;  // T is the type it names
  Bank teacher_bank, student_bank;
  Packed teacher, student;
  int64_t b, blocks, k;
  int64_t segments, segment_rows;
  double teacher_temperature, student_temperature;

  // [blocks][columns][n][width] T: a column is a vector of lanes, as wide as the instruction set has them.
  void *teacher_scores, *student_scores;
  // [blocks][lanes]: the k nearest are the rows above the border, and those equal to it before row tie_end.
  void *border, *teacher_top;  // T; the largest teacher score
  int64_t* tie_end;
  // [segments][blocks][lanes] T: largest exponent of the student, sums of 2^(exponent - largest) of teacher and
  // student, and sum of the teacher's times the difference of both exponents.
  void *student_top, *teacher_total, *student_total, *cross;
  void *teacher_factor, *student_factor, *shift;  // [blocks][lanes] T: 1 / total, and the largest student score
  void* sum;                                      // [segments][blocks][d][lanes] T, or null without gradient

  void *loss, *grad;  // results, row-major
};

SLR_DECLARE_KERNEL(int64_t neighbor_kl_columns())  // of a block
SLR_DECLARE_KERNEL(int64_t neighbor_kl_scratch(const NeighborKl& job))
SLR_DECLARE_KERNEL(void neighbor_kl_teacher(const NeighborKl& job, int64_t begin, int64_t end, void* scratch))
SLR_DECLARE_KERNEL(void neighbor_kl_border(const NeighborKl& job, int64_t begin, int64_t end))
SLR_DECLARE_KERNEL(void neighbor_kl_student(const NeighborKl& job, int64_t begin, int64_t end, void* scratch))
SLR_DECLARE_KERNEL(void neighbor_kl_loss(const NeighborKl& job, int64_t begin, int64_t end))
SLR_DECLARE_KERNEL(void neighbor_kl_grad(const NeighborKl& job, int64_t begin, int64_t end, void* scratch))
SLR_DECLARE_KERNEL(void neighbor_kl_finish(const NeighborKl& job, int64_t begin, int64_t end))

}  // namespace slr
