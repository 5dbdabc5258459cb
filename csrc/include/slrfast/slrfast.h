/* The whole C interface of slrfast.
 *
 * Buffers are compact and row-major and belong to the caller; sizes are 64-bit counts of elements. A function checks
 * its arguments, writes every element of its result and returns a status; after a failure slr_last_error() says, for
 * the calling thread, what was wrong. The _cuda functions only enqueue work on the stream they are given.
 */
#ifndef SLRFAST_SLRFAST_H
#define SLRFAST_SLRFAST_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum slr_status {
  SLR_OK = 0,
  SLR_INVALID_ARGUMENT = 1, /* the caller's mistake; nothing was written */
  SLR_UNSUPPORTED = 2,      /* this build or this machine cannot do it */
  SLR_CUDA_ERROR = 3,       /* the CUDA runtime reported an error */
  SLR_OUT_OF_MEMORY = 4     /* of the scratch memory of one call */
} slr_status;

typedef enum slr_dtype { SLR_F32 = 0, SLR_F64 = 1, SLR_BF16 = 2, SLR_F16 = 3 } slr_dtype;

typedef enum slr_direction { SLR_BACKWARD = 0, SLR_FORWARD = 1 } slr_direction;

/* One sentence about the last failure in this thread, "" before the first. */
const char* slr_last_error(void);

/* Lines "key=value": compiler, threads, isas, cuda. */
const char* slr_build_info(void);

/* The instruction set whose kernels run: "base", "avx2" or "avx512". SLRFAST_CPU_ISA, read once, forces one. */
slr_status slr_cpu_isa(const char** name);

/* Temporal difference. x, y: [outer, frames, row] of one slr_dtype, not overlapping.
 * SLR_BACKWARD: y[t] = x[t] - x[t - interval]; SLR_FORWARD: y[t] = x[t + interval] - x[t]; zero where undefined.
 * Half types are subtracted in float32. At most `threads` threads are used. */
slr_status slr_motion_cpu(int32_t dtype, const void* x, void* y, int64_t outer, int64_t frames, int64_t row,
                          int64_t interval, int32_t direction, int32_t threads);
slr_status slr_motion_cuda(int32_t dtype, const void* x, void* y, int64_t outer, int64_t frames, int64_t row,
                           int64_t interval, int32_t direction, void* stream);

/* Its adjoint: grad_x = J^T grad_y, both [outer, frames, row]. */
slr_status slr_motion_grad_cpu(int32_t dtype, const void* grad_y, void* grad_x, int64_t outer, int64_t frames,
                               int64_t row, int64_t interval, int32_t direction, int32_t threads);
slr_status slr_motion_grad_cuda(int32_t dtype, const void* grad_y, void* grad_x, int64_t outer, int64_t frames,
                                int64_t row, int64_t interval, int32_t direction, void* stream);

/* Windows of packed clips. frames [total, row]; clip b is frames offsets[b] .. offsets[b + 1] - 1, offsets [clips + 1];
 * window start, length [views, clips] is inside its clip; result [views, clips, out_frames, row]. Linear: half-pixel
 * centres, blended in float (double for SLR_F64). Nearest: frame floor(i length / out_frames); `row` is bytes there. */
slr_status slr_resample_cpu(int32_t dtype, const void* frames, int64_t total, int64_t row, const int64_t* offsets,
                            int64_t clips, const int64_t* start, const int64_t* length, int64_t views,
                            int64_t out_frames, void* result, int32_t threads);
slr_status slr_resample_nearest_cpu(const void* frames, int64_t total, int64_t row, const int64_t* offsets,
                                    int64_t clips, const int64_t* start, const int64_t* length, int64_t views,
                                    int64_t out_frames, void* result, int32_t threads);

/* Changes of clips: x [clips, frames, joints, 2], confidence [clips, frames, joints]. y = M (x - c) + c with the linear
 * [clips, parts, 2, 2] and center [clips, parts, 2] of the part [joints] of an affected [clips, joints] joint that is
 * seen (confidence > 0); then 0 where drop [clips, joints]; then, where swap [clips], joint v is joint swap_index[v].
 * linear and center are double for SLR_F64 and float otherwise, in which type everything is computed. */
slr_status slr_augment_cpu(int32_t dtype, const void* x, const void* confidence, int64_t clips, int64_t frames,
                           int64_t joints, const void* linear, const void* center, int64_t parts, const int64_t* part,
                           const uint8_t* affected, const uint8_t* drop, const uint8_t* swap, const int64_t* swap_index,
                           void* x_out, void* confidence_out, int32_t threads);

/* Both, for the windows [views, clips] and as many changes. motion_out, or null: the difference of positions in the
 * clip, resampled, changed about zero wherever a joint is affected. visible [views, clips, out_frames, parts]: whether
 * a joint of the part of the view is seen in the nearest frame, before joints are dropped. */
slr_status slr_pose_views_cpu(int32_t dtype, const void* xy, const void* confidence, int64_t total, int64_t joints,
                              const int64_t* offsets, int64_t clips, const int64_t* start, const int64_t* length,
                              int64_t views, int64_t out_frames, const void* linear, const void* center, int64_t parts,
                              const int64_t* part, const uint8_t* affected, const uint8_t* drop, const uint8_t* swap,
                              const int64_t* swap_index, int32_t direction, void* xy_out, void* motion_out,
                              void* confidence_out, uint8_t* visible, int32_t threads);

/* What MASA masks and predicts. x [clips, frames, joints, 2], confidence [clips, frames, joints]; lengths [clips] in
 * [0, frames], or null for all frames; keys [clips, frames] of SLR_F32 or SLR_F64. For the frames i < length - interval
 * residual = x[i + interval] - x[i] and weight = the product of both frames' confidences, each 0 if it is below
 * confidence_threshold; the other frames have 0. An entry moves if |residual| weight >= motion_threshold, in double
 * (with `norm` a joint, by the length of its residual); a frame with at least joint_fraction of them is a candidate;
 * mask [clips, frames] is 1 for the floor(mask_ratio candidates) of them with the smallest keys, the earlier of equal
 * ones first, NaN as inf. */
slr_status slr_motion_mask_cpu(int32_t dtype, const void* x, const void* confidence, const int64_t* lengths,
                               int32_t key_dtype, const void* keys, int64_t clips, int64_t frames, int64_t joints,
                               int64_t interval, double confidence_threshold, double motion_threshold,
                               double joint_fraction, double mask_ratio, int32_t norm, void* residual, void* weight,
                               uint8_t* mask, int32_t threads);

/* loss [clips] = sum of ((prediction - scale residual) weight)^2, or of its absolute value, over the frames in mask
 * [clips, frames], with `average` / their number; grad = d loss / d prediction, or null. dtype SLR_F32 or SLR_F64;
 * prediction, residual, grad [clips, frames, joints, 2], weight too if `per_coordinate`, else [clips, frames, joints].
 */
slr_status slr_masked_motion_loss_cpu(int32_t dtype, const void* prediction, const void* residual, const void* weight,
                                      int32_t per_coordinate, const uint8_t* mask, int64_t clips, int64_t frames,
                                      int64_t joints, double scale, int32_t squared, int32_t average, void* loss,
                                      void* grad, int32_t threads);

/* Channels that vary over time. z [clips, frames, channels] of any slr_dtype; variance [clips, channels], double for
 * SLR_F64 and float otherwise: the sum of squares about the mean / (frames - 1), 0 for one frame; keep [clips,
 * channels] = variance >= least [clips]; masked as z, 0 in the other channels. Any of the three results may be null. */
slr_status slr_channel_mask_cpu(int32_t dtype, const void* z, int64_t clips, int64_t frames, int64_t channels,
                                const double* least, void* masked, uint8_t* keep, void* variance, int32_t threads);

/* mask [clips, frames_each, pixels] = level > Otsu's threshold of the clip's levels, 1 where they all are one; level =
 * floor(255 grey + 1/2) with grey = 0.299 red + 0.587 green + 0.114 blue of frames [clips, frames_each, 3, pixels], in
 * [0, 1]; with still [3, pixels], double for SLR_F64 and float otherwise, or null, of |frames - still|. */
slr_status slr_otsu_mask_cpu(int32_t dtype, const void* frames, const void* still, int64_t clips, int64_t frames_each,
                             int64_t pixels, uint8_t* mask, int32_t threads);

/* loss [clips] = sum of confidence |prediction - target|^2 over the keypoints in mask, count [clips] how many those
 * are; grad = d loss / d prediction, or null. dtype SLR_F32 or SLR_F64; prediction, target, grad [clips, keypoints, 2],
 * mask and confidence [clips, keypoints], of all frames of a clip. */
slr_status slr_masked_pose_loss_cpu(int32_t dtype, const void* prediction, const void* target, const uint8_t* mask,
                                    const void* confidence, int64_t clips, int64_t keypoints, void* loss,
                                    int64_t* count, void* grad, int32_t threads);

/* similarity [b, m] = mean over the rows r of sign[i] of sum_w p_rw z_rw, z_rw = <sign[i, r], text[j, w]> and p_r its
 * softmax over the words w of text[j] of z_r / row_temperature; 0 where there is no row or no word. dtype SLR_F32,
 * SLR_F64 or SLR_BF16 is that of sign [b, sign_length, d] and text [m, text_length, d]; everything else is double for
 * SLR_F64 and float otherwise. A null mask has every row. Scores are held for some thousand rows at a time. slopes, or
 * null: as many numbers as b sign_length, rounded up to 32, times m text_length, rounded up to 8; what the adjoint
 * takes instead of computing scores again, in an order that only it knows and that depends on the processor. */
slr_status slr_sign_text_similarity_cpu(int32_t dtype, const void* sign, const uint8_t* sign_mask, int64_t b,
                                        int64_t sign_length, const void* text, const uint8_t* text_mask, int64_t m,
                                        int64_t text_length, int64_t d, double row_temperature, void* similarity,
                                        void* slopes, int32_t threads);

/* Its adjoint for grad [b, m]: grad_sign [b, sign_length, d] and grad_text [m, text_length, d], each or null. */
slr_status slr_sign_text_similarity_grad_cpu(int32_t dtype, const void* grad, const void* sign,
                                             const uint8_t* sign_mask, int64_t b, int64_t sign_length, const void* text,
                                             const uint8_t* text_mask, int64_t m, int64_t text_length, int64_t d,
                                             double row_temperature, const void* slopes, void* grad_sign,
                                             void* grad_text, int32_t threads);

/* Losses over a memory bank. `dtype`, SLR_F32 or SLR_F64, is the type of every sum, of the rows [b, d] that are
 * compared (query, positive, teacher, student) and of the results; a bank [n, d] has any slr_dtype and any strides, in
 * elements, and is only read. `grad` is d loss[b] / d row[b] and may be null when it is not wanted. Results do not
 * depend on `threads`. A row with an inf or NaN spoils its own results only, a bank row with one those of every row. */

/* loss [b] = log(exp(s_b0) + sum_i exp(s_bi)) - s_b0, s = <query, positive or bank row> / temperature; rank [b], or
 * null: the bank rows that score strictly above the positive; grad [b, d]. */
slr_status slr_info_nce_cpu(int32_t dtype, const void* query, const void* positive, int32_t bank_dtype,
                            const void* bank, int64_t row_stride, int64_t column_stride, int64_t b, int64_t n,
                            int64_t d, double temperature, void* loss, int64_t* rank, void* grad, int32_t threads);

/* loss [b] = (sum_i softplus(s_bi) - sum_{i in P_b} s_bi) / n; P_b: the distinct entries of positives [b, m] in [0, n).
 */
slr_status slr_mined_bce_cpu(int32_t dtype, const void* query, int32_t bank_dtype, const void* bank, int64_t row_stride,
                             int64_t column_stride, const int64_t* positives, int64_t b, int64_t n, int64_t d,
                             int64_t m, double temperature, void* loss, void* grad, int32_t threads);

/* Both of the above from one set of scores; only the first p rows have positives [p, m] and the second loss [p]. */
slr_status slr_bank_losses_cpu(int32_t dtype, const void* query, const void* positive, int32_t bank_dtype,
                               const void* bank, int64_t row_stride, int64_t column_stride, const int64_t* positives,
                               int64_t b, int64_t n, int64_t d, int64_t p, int64_t m, double temperature,
                               double mined_temperature, void* info_nce, void* mined_bce, void* grad_info_nce,
                               void* grad_mined_bce, int32_t threads);

/* loss [b] = sum_i P_i (log P_i - log Q_i) over the k rows of the teacher's bank [n, d] that are nearest to teacher[b];
 * P, Q: softmax over those rows of teacher and student scores; student_bank [n, student_d]; grad [b, student_d]. */
slr_status slr_neighbor_kl_cpu(int32_t dtype, const void* teacher, int32_t teacher_bank_dtype, const void* teacher_bank,
                               int64_t teacher_row_stride, int64_t teacher_column_stride, int64_t d,
                               const void* student, int32_t student_bank_dtype, const void* student_bank,
                               int64_t student_row_stride, int64_t student_column_stride, int64_t student_d, int64_t b,
                               int64_t n, int64_t k, double teacher_temperature, double student_temperature, void* loss,
                               void* grad, int32_t threads);

/* values [b, k], indices [b, k]: the k largest <query[b], bank[i]>, lowest index first among equals; by falling value
 * if `sorted`, else by index. NaN counts as inf in the choice. */
slr_status slr_topk_similarity_cpu(int32_t dtype, const void* query, int32_t bank_dtype, const void* bank,
                                   int64_t row_stride, int64_t column_stride, int64_t b, int64_t n, int64_t d,
                                   int64_t k, int32_t sorted, void* values, int64_t* indices, int32_t threads);

/* Its adjoint for the query: result[b] = sum_j grad[b, j] bank[indices[b, j]]; indices in [0, n). */
slr_status slr_topk_similarity_grad_cpu(int32_t dtype, const void* grad, const int64_t* indices, int32_t bank_dtype,
                                        const void* bank, int64_t row_stride, int64_t column_stride, int64_t b,
                                        int64_t n, int64_t d, int64_t k, void* result, int32_t threads);

/* loss [b] = sum_j P_j (log P_j - log Q_j), P and Q the softmax over d of teacher and student [b, d] / temperature. */
slr_status slr_feature_kl_cpu(int32_t dtype, const void* teacher, const void* student, int64_t b, int64_t d,
                              double temperature, void* loss, void* grad, int32_t threads);

/* bank[(cursor + j) mod n] = keys[j] (/ its length if `normalize`, as if that were at least 1e-12), then cursor moves
 * on by b. keys: compact [b, d] of `key_dtype`; of b > n keys the last n are written. */
slr_status slr_enqueue_cpu(int32_t bank_dtype, void* bank, int64_t row_stride, int64_t column_stride, int64_t n,
                           int64_t d, int64_t* cursor, int32_t key_dtype, const void* keys, int64_t b,
                           int32_t normalize, int32_t threads);

/* The graph network of a skeleton. Activations have any slr_dtype; weights, biases, moments and sums are double for
 * SLR_F64 and float otherwise, in which type everything between two stored tensors is computed. A bfloat16 product may
 * multiply bfloat16 numbers and adds in float. edges: [edge_count][3] partition, source, target; coefficients
 * [edge_count]. Rows are `groups` equal parts with statistics of their own. `norm` [groups][4][C] is a batch
 * normalisation: 1 / deviation, -mean / deviation, gamma, beta; `sums` [2][groups][C] are those of the gradient of its
 * result and of that times the normalised value. `seed` and the site of a dropout give its mask, see
 * slrfast/reference/dropout.py. Results depend on `threads` only in the rounding of grad_weight and grad_bias. */

/* y [rows, nodes, outputs] = sum over edges (p, v, w) of coefficient (x[v] weight[p] + bias[p]) at w; x [rows, nodes,
 * inputs], weight [partitions, inputs, outputs], bias [partitions, outputs] or null; moments [2][groups][outputs], mean
 * and biased variance of y, or null. */
slr_status slr_graph_conv_cpu(int32_t dtype, const void* x, int64_t rows, int64_t nodes, int64_t inputs,
                              int64_t outputs, int64_t partitions, const int32_t* edges, const float* coefficients,
                              int64_t edge_count, const void* weight, const void* bias, void* y, int64_t groups,
                              void* moments, int32_t threads);

/* Its adjoint. grad is that of y or, with `norm`, of norm(y), which then needs y and sums; `along` [rows, nodes,
 * inputs], or null, is added to grad_x and may be the same buffer. grad_weight [partitions, inputs, outputs], grad_bias
 * [partitions, outputs]. */
slr_status slr_graph_conv_grad_cpu(int32_t dtype, const void* grad, const void* y, const void* norm, const void* sums,
                                   int64_t groups, const void* x, int64_t rows, int64_t nodes, int64_t inputs,
                                   int64_t outputs, int64_t partitions, const int32_t* edges, const float* coefficients,
                                   int64_t edge_count, const void* weight, const void* along, void* grad_x,
                                   void* grad_weight, void* grad_bias, int32_t threads);

/* y [rows, outputs] = f(x) weight^T + bias, weight [outputs, inputs]; f is dropout at site 0 of relu of norm, or
 * nothing where norm is null. */
slr_status slr_gcn_map_cpu(int32_t dtype, const void* x, int64_t rows, int64_t inputs, int64_t outputs, int64_t groups,
                           const void* norm, double dropout, const int64_t* seed, const void* weight, const void* bias,
                           void* y, void* moments, int32_t threads);

/* Its adjoint from grad, that of dropout at site 1 of norm(y): grad_x is that of x_norm(x), or of x where x_norm is
 * null (then f is nothing); x_sums [2][groups][inputs] are the sums of x_norm. `dropout` is that of both sites.
 * grad_weight [outputs, inputs], grad_bias [outputs]. */
slr_status slr_gcn_map_grad_cpu(int32_t dtype, const void* grad, const void* y, int64_t rows, int64_t inputs,
                                int64_t outputs, int64_t groups, const void* norm, const void* sums, double dropout,
                                const int64_t* seed, const void* x, const void* x_norm, const void* weight,
                                void* grad_x, void* x_sums, void* grad_weight, void* grad_bias, int32_t threads);

/* out [rows, channels] = relu(dropout at site 1 of norm(y) + residual), residual [rows, channels] or null, through
 * residual_norm unless that is null. */
slr_status slr_gcn_output_cpu(int32_t dtype, const void* y, int64_t rows, int64_t channels, int64_t groups,
                              const void* norm, double dropout, const int64_t* seed, const void* residual,
                              const void* residual_norm, void* out, int32_t threads);

/* masked [rows, channels] = 0 where out <= 0, else grad, also where out is NaN; sums [2][groups][channels] those of
 * norm, residual_sums those of residual_norm where there is one. */
slr_status slr_gcn_output_grad_cpu(int32_t dtype, const void* grad, const void* y, int64_t rows, int64_t channels,
                                   int64_t groups, const void* norm, double dropout, const int64_t* seed,
                                   const void* residual, const void* residual_norm, void* masked, void* sums,
                                   void* residual_sums, int32_t threads);

/* pooled [rows, parts, channels] = max over m of x[:, members[p, m]], members [parts, most] nodes, filled up with the
 * first; chosen: the first m that has it. NaN is the largest. */
slr_status slr_part_max_cpu(int32_t dtype, const void* x, int64_t rows, int64_t nodes, int64_t channels,
                            const int32_t* members, int64_t parts, int64_t most, void* pooled, uint8_t* chosen,
                            int32_t threads);

/* Its adjoint: grad and chosen [rows, parts, channels], grad_x [rows, nodes, channels]. */
slr_status slr_part_max_grad_cpu(int32_t dtype, const void* grad, const uint8_t* chosen, int64_t rows, int64_t nodes,
                                 int64_t channels, const int32_t* members, int64_t parts, int64_t most, void* grad_x,
                                 int32_t threads);

/* relu(relu(graph_conv(x; weight) + node_bias) map^T + bias + residual(x)); residual(x) is x if `identity`, x
 * residual^T, or nothing. weight [partitions, inputs, outputs], node_bias [nodes, outputs], map [outputs, outputs],
 * bias [outputs], residual [outputs, inputs] or null, which it is with `identity`. */
typedef struct slr_folded_block {
  int64_t inputs, outputs, identity;
  const void *weight, *node_bias, *map, *bias, *residual;
} slr_folded_block;

/* out [rows, last outputs]: joint_blocks blocks on x [rows, nodes, inputs], max over the nodes of each part, the other
 * blocks on the pooled graph, max over the parts. */
slr_status slr_part_gcn_cpu(int32_t dtype, const void* x, int64_t rows, int64_t nodes, int64_t inputs,
                            int64_t partitions, const slr_folded_block* blocks, int64_t count, int64_t joint_blocks,
                            const int32_t* edges, const float* coefficients, int64_t edge_count, const int32_t* members,
                            int64_t parts, int64_t most, const int32_t* pooled_edges, const float* pooled_coefficients,
                            int64_t pooled_edge_count, void* out, int32_t threads);

/* The most probable labelling by a CTC prefix beam search of log_probs [clips, frames, classes], SLR_F32 or SLR_F64,
 * the first lengths [clips] frames of each: tokens [clips, frames] with -1 behind the counts [clips] that there are;
 * scores [clips], the log-probability over the alignments that the beam saw. At most `beam` prefixes are kept from
 * frame to frame; those of probability 0, or NaN, never. */
slr_status slr_ctc_beam_search_cpu(int32_t dtype, const void* log_probs, int64_t clips, int64_t frames, int64_t classes,
                                   const int64_t* lengths, int64_t blank, int64_t beam, int64_t* tokens,
                                   int64_t* counts, double* scores, int32_t threads);

#ifdef __cplusplus
}
#endif

#endif
