/* Enhances a mono WAV file (16-bit or 32-bit float) with a folded model, hop by hop as a device would.
 *
 *   enhance_wav MODEL INPUT.wav OUTPUT.wav [PRECISION [BUDGET]]
 *
 * BUDGET is the share of a gated model's channels to keep, from 0 to 1; without it, what the model was trained for.
 * The output is 32-bit float, as long as the input and aligned with it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/dyncp.h"

static uint32_t read_u32(const unsigned char* p) {
  return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t read_u16(const unsigned char* p) { return p[0] | (uint32_t)p[1] << 8; }

static void write_u32(unsigned char* p, uint32_t value) {
  for (int i = 0; i < 4; ++i) p[i] = (unsigned char)(value >> (8 * i));
}

static unsigned char* read_whole(const char* path, size_t* size) {
  FILE* file = fopen(path, "rb");
  unsigned char* bytes = NULL;
  size_t room = 0;
  *size = 0;
  if (file == NULL) return NULL;
  for (size_t got = 1; got > 0; *size += got) {
    if (*size == room) {
      unsigned char* larger = realloc(bytes, room = room * 2 + 65536);
      if (larger == NULL) break;
      bytes = larger;
    }
    got = fread(bytes + *size, 1, room - *size, file);
  }
  fclose(file);
  return bytes;
}

/* Samples in full scale 1.0, or null with a message. */
static float* read_wav(const char* path, size_t* count, uint32_t* rate) {
  size_t size;
  unsigned char* bytes = read_whole(path, &size);
  uint32_t format = 0, bits = 0;
  float* samples = NULL;
  if (bytes == NULL || size < 12 || memcmp(bytes, "RIFF", 4) != 0 || memcmp(bytes + 8, "WAVE", 4) != 0) {
    fprintf(stderr, "%s: must be a WAV file\n", path);
    free(bytes);
    return NULL;
  }
  for (size_t at = 12; at + 8 <= size && samples == NULL;) {
    const unsigned char* data = bytes + at + 8;
    size_t length = read_u32(bytes + at + 4);
    if (length > size - at - 8) length = size - at - 8;
    if (memcmp(bytes + at, "fmt ", 4) == 0 && length >= 16 && read_u16(data + 2) == 1) {
      format = read_u16(data);
      bits = read_u16(data + 14);
      *rate = read_u32(data + 4);
    } else if (memcmp(bytes + at, "data", 4) == 0) {
      if (!((format == 1 && bits == 16) || (format == 3 && bits == 32))) break;
      *count = length / (bits / 8);
      samples = malloc((*count + 1) * sizeof(float));
      for (size_t i = 0; samples != NULL && i < *count; ++i) {
        const uint32_t word = bits == 32 ? read_u32(data + 4 * i) : 0;
        if (bits == 32) memcpy(&samples[i], &word, 4);
        if (bits == 16) samples[i] = (float)(int16_t)read_u16(data + 2 * i) / 32768.0f;
      }
    }
    at += 8 + length + (length & 1);
  }
  free(bytes);
  if (samples == NULL) fprintf(stderr, "%s: must be mono, 16-bit or 32-bit float\n", path);
  return samples;
}

static int write_wav(const char* path, const float* samples, size_t count, uint32_t rate) {
  unsigned char header[44] = "RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x03\0\x01\0\0\0\0\0\0\0\0\0\x04\0\x20\0data";
  FILE* file = fopen(path, "wb");
  int good;
  write_u32(header + 4, (uint32_t)(36 + 4 * count));
  write_u32(header + 24, rate);
  write_u32(header + 28, 4 * rate);
  write_u32(header + 40, (uint32_t)(4 * count));
  if (file == NULL) return 0;
  good = fwrite(header, 1, 44, file) == 44 && fwrite(samples, 4, count, file) == count;
  return fclose(file) == 0 && good;
}

/* Every hop through the stream, then silence for the latency; the first `latency` samples of the output are dropped. */
static int enhance(dyncp_stream* stream, dyncp_info info, const float* samples, size_t count, float* enhanced) {
  const size_t hop = (size_t)info.hop, latency = (size_t)info.latency;
  float* buffer = malloc(hop * sizeof(float));
  int good = buffer != NULL;
  for (size_t start = 0; good && start < count + latency; start += hop) {
    for (size_t i = 0; i < hop; ++i) buffer[i] = start + i < count ? samples[start + i] : 0.0f;
    good = dyncp_stream_push_hop(stream, buffer, buffer) == DYNCP_OK;
    for (size_t i = 0; i < hop; ++i) {
      if (start + i >= latency && start + i - latency < count) enhanced[start + i - latency] = buffer[i];
    }
  }
  free(buffer);
  return good;
}

int main(int count, char** arguments) {
  const char* precision = count > 4 ? arguments[4] : "float32";
  dyncp_model* model = NULL;
  dyncp_stream* stream = NULL;
  float *samples = NULL, *enhanced = NULL;
  size_t length = 0;
  uint32_t rate = 0;
  int status = 1;
  if (count < 4 || count > 6) {
    fprintf(stderr, "usage: enhance_wav MODEL INPUT.wav OUTPUT.wav [PRECISION [BUDGET]]\n");
    return 2;
  }
  samples = read_wav(arguments[2], &length, &rate);
  if (samples != NULL) enhanced = malloc((length + 1) * sizeof(float));
  if (enhanced == NULL) goto done;
  if (dyncp_model_load(arguments[1], precision, &model) != DYNCP_OK ||
      dyncp_stream_create(model, &stream) != DYNCP_OK ||
      (count > 5 && dyncp_stream_set_budget(stream, (float)atof(arguments[5])) != DYNCP_OK)) {
    fprintf(stderr, "%s: %s\n", arguments[1], dyncp_last_error());
    goto done;
  }
  if (rate != (uint32_t)dyncp_model_info(model).sample_rate) {
    fprintf(stderr, "%s: must have %d samples per second\n", arguments[2], (int)dyncp_model_info(model).sample_rate);
    goto done;
  }
  if (!enhance(stream, dyncp_model_info(model), samples, length, enhanced)) {
    fprintf(stderr, "%s\n", dyncp_last_error());
    goto done;
  }
  if (!write_wav(arguments[3], enhanced, length, rate)) {
    fprintf(stderr, "%s: cannot be written\n", arguments[3]);
    goto done;
  }
  status = 0;
done:
  dyncp_stream_free(stream);
  dyncp_model_free(model);
  free(samples);
  free(enhanced);
  return status;
}
