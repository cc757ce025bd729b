/* C interface of the streaming engine: enhance speech frame by frame without Python and without torch.
 *
 *   dyncp_model* model = NULL;
 *   if (dyncp_model_load("model.safetensors", "float32", &model) != DYNCP_OK) puts(dyncp_last_error());
 *   dyncp_stream* stream = NULL;
 *   dyncp_stream_create(model, &stream);
 *   while (...) dyncp_stream_push_hop(stream, samples, enhanced);   // dyncp_model_info().hop samples each
 *   dyncp_stream_free(stream);
 *   dyncp_model_free(model);
 *
 * A model is only read and may serve any number of streams in any number of threads; it may be freed before its
 * streams.  A stream may be used by one thread at a time.  Frames that come in one call, of one stream or of many,
 * share the weights that are read, so that each takes less time.  Nothing is allocated while frames are pushed, no
 * exception leaves the library.  Functions that can fail return DYNCP_OK or an error; dyncp_last_error() then says what
 * was wrong. */
#ifndef DYNCP_H_
#define DYNCP_H_

#include <stdint.h>

#define DYNCP_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dyncp_model dyncp_model;
typedef struct dyncp_stream dyncp_stream;

typedef enum {
  DYNCP_OK = 0,
  DYNCP_INVALID_ARGUMENT = 1, /* a null pointer, an unknown precision, a model without the wanted part */
  DYNCP_INVALID_MODEL = 2,    /* the file is not a whole, valid folded model */
  DYNCP_IO_ERROR = 3,         /* the file cannot be read */
  DYNCP_OUT_OF_MEMORY = 4,
  DYNCP_INTERNAL_ERROR = 5
} dyncp_status;

typedef struct {
  int32_t bins, channels, hidden, blocks; /* mask values per frame; widths; number of blocks */
  int32_t hidden_gates, out_gates;        /* gates per block: hidden or 0, channels or 0 */
  int32_t n_fft, hop, sample_rate;        /* in samples, samples and Hz */
  int32_t latency;                        /* samples by which push_hop's output lags behind its input: n_fft - hop */
} dyncp_info;

/* What was wrong in this thread's last failed call; never null. */
DYNCP_API const char* dyncp_last_error(void);

/* Instruction set in use: "portable", "avx2", "avx512", "avx512vnni", "amx", "neon" or "neondot". */
DYNCP_API const char* dyncp_active_instruction_set(void);

/* Loads a folded model (`dyncp export` writes one).  precision of the large weights: "float32",
 * "float16", "bfloat16", "int8" or "int24" (scaled per output channel); sums are as exact as in float32, of activations
 * that have 16 bits where a processor multiplies the bytes of "int8". */
DYNCP_API dyncp_status dyncp_model_load(const char* path, const char* precision, dyncp_model** model);
DYNCP_API dyncp_status dyncp_model_parse(const void* bytes, int64_t count, const char* precision, dyncp_model** model);
DYNCP_API dyncp_info dyncp_model_info(const dyncp_model* model);
DYNCP_API void dyncp_model_free(dyncp_model* model); /* null is fine */

/* A new stream at its start.  The first stream of a gated model measures for some milliseconds which of two code paths
 * is faster at which share of kept channels. */
DYNCP_API dyncp_status dyncp_stream_create(const dyncp_model* model, dyncp_stream** stream);
DYNCP_API void dyncp_stream_free(dyncp_stream* stream); /* null is fine */

/* Forget the signal so far; the shift stays. */
DYNCP_API dyncp_status dyncp_stream_reset(dyncp_stream* stream);

/* Added to every gate score from the next frame on: above 0 keeps more channels than the model was trained for, below 0
 * fewer.  0 at the start. */
DYNCP_API dyncp_status dyncp_stream_set_shift(dyncp_stream* stream, float shift);

/* The same by the share of channels to keep, 0 to 1, with the model's calibration.  A network keeps its quality in the
 * range of budgets that it was trained for. */
DYNCP_API dyncp_status dyncp_stream_set_budget(dyncp_stream* stream, float share);

/* bins features (|X| + 1e-9) ^ c of one frame to bins mask values in (0, 1). */
DYNCP_API dyncp_status dyncp_stream_push_frame(dyncp_stream* stream, const float* features, float* mask);

/* The same for any number of frames, one behind the other: the same masks to the bit. */
DYNCP_API dyncp_status dyncp_stream_push_frames(dyncp_stream* stream, const float* features, int64_t frames,
                                                float* masks);

/* The same for `count` different streams of one model, each with `frames` frames: features (count, frames, bins) to
 * masks of that shape, to the bit those of every stream alone. */
DYNCP_API dyncp_status dyncp_streams_push_frames(dyncp_stream* const* streams, int64_t count, const float* features,
                                                 int64_t frames, float* masks);

/* hop samples in, hop samples out; in and out may be the same.  Full scale is 1; NaN and what exceeds 1e6 count as
 * silence. */
DYNCP_API dyncp_status dyncp_stream_push_hop(dyncp_stream* stream, const float* samples, float* enhanced);

/* The same for any number of hops, likewise. */
DYNCP_API dyncp_status dyncp_stream_push_hops(dyncp_stream* stream, const float* samples, int64_t hops,
                                              float* enhanced);

/* The same for `count` different streams of one model: samples (count, hops * hop) to as many. */
DYNCP_API dyncp_status dyncp_streams_push_hops(dyncp_stream* const* streams, int64_t count, const float* samples,
                                               int64_t hops, float* enhanced);

/* Gates of one block at the last frame, 1 for a kept channel; hidden_gates and out_gates bytes.  A null pointer skips
 * that site. */
DYNCP_API dyncp_status dyncp_stream_gates(const dyncp_stream* stream, int32_t block, uint8_t* hidden, uint8_t* out);

#ifdef __cplusplus
}
#endif

#endif /* DYNCP_H_ */
