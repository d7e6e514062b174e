/* libjpeg for Rust. An error of libjpeg is a longjmp; each function here that may meet one has a setjmp of its own, so no jump
 * leaves this file and no frame of Rust is ever skipped.
 *
 * Strict: a warning that means missing or damaged pixels is an error (libjpeg would fill them in). One about how the file is
 * written, and not about its pixels, is not. */

#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JPEG_INTERNALS /* for what jpeg_lanes.h replaces */
#include "jinclude.h"
#include "jpeglib.h"
#include "jerror.h"
#include "jdct.h"

#ifndef WITH_SIMD
#include "jpeg_lanes.h"
#endif

/* First in its struct, so that a pointer to libjpeg's part is a pointer to this. */
typedef struct {
  struct jpeg_error_mgr base;
  jmp_buf back;
  char text[JMSG_LENGTH_MAX];
} Errors;

typedef struct {
  struct jpeg_decompress_struct jpeg;
  Errors errors;
} Reader;

static void fail(j_common_ptr jpeg) {
  Errors *errors = (Errors *)jpeg->err;
  errors->base.format_message(jpeg, errors->text);
  longjmp(errors->back, 1);
}

static void message(j_common_ptr jpeg, int level) {
  if (level >= 0) return;
  jpeg->err->num_warnings++;
  switch (jpeg->err->msg_code) {
    case JWRN_EXTRANEOUS_DATA:
    case JWRN_ADOBE_XFORM:
    case JWRN_JFIF_MAJOR:
    case JWRN_BOGUS_PROGRESSION:
      return;
    default:
      fail(jpeg);
  }
}

static void silent(j_common_ptr jpeg) { (void)jpeg; }

static struct jpeg_error_mgr *errors_of(Errors *errors) {
  jpeg_std_error(&errors->base);
  errors->base.error_exit = fail;
  errors->base.emit_message = message;
  errors->base.output_message = silent;
  return &errors->base;
}

static void say(char *to, size_t room, const char *text) {
  if (room > 0) snprintf(to, room, "%s", text);
}

void qformer_jpeg_close(Reader *reader) {
  if (!reader) return;
  jpeg_destroy_decompress(&reader->jpeg);
  free(reader);
}

static int start(Reader *reader, const unsigned char *data, size_t length, int channels, long memory) {
  struct jpeg_decompress_struct *jpeg = &reader->jpeg;
  jpeg->err = errors_of(&reader->errors);
  if (setjmp(reader->errors.back)) return 0;
  jpeg_create_decompress(jpeg);
  jpeg->mem->max_memory_to_use = memory;
  jpeg_mem_src(jpeg, data, length);
  jpeg_read_header(jpeg, TRUE);
  jpeg->out_color_space = channels == 1 ? JCS_GRAYSCALE : channels == 3 ? JCS_RGB : JCS_CMYK;
  jpeg_start_decompress(jpeg);
#ifndef WITH_SIMD
  if (jpeg->dct_method == JDCT_ISLOW) use_lanes(jpeg);
#endif
  return 1;
}

/* Reads the headers, and whatever must be read before the first row. `data` stays until close; `memory` is the most bytes of
 * coefficients; `channels` of the rows is 1, 3 or 4. NULL, and why in `text`, if it cannot be read or has another size. */
Reader *qformer_jpeg_open(const unsigned char *data, size_t length, unsigned width, unsigned height, int channels, long memory,
                          char *text, size_t room) {
  Reader *reader = calloc(1, sizeof(Reader));
  if (!reader) {
    say(text, room, "no memory");
    return NULL;
  }
  const struct jpeg_decompress_struct *jpeg = &reader->jpeg;
  if (!start(reader, data, length, channels, memory)) {
    say(text, room, reader->errors.text);
  } else if (jpeg->output_width != width || jpeg->output_height != height || jpeg->output_components != channels) {
    say(text, room, "the header names another size than the picture");
  } else {
    return reader;
  }
  qformer_jpeg_close(reader);
  return NULL;
}

/* The next row; after the last one the rest of the file is checked. 0, and why in `text`, if it is broken. */
int qformer_jpeg_row(Reader *reader, unsigned char *row, char *text, size_t room) {
  struct jpeg_decompress_struct *jpeg = &reader->jpeg;
  if (setjmp(reader->errors.back)) {
    say(text, room, reader->errors.text);
    return 0;
  }
  JSAMPROW rows[1] = {row};
  if (jpeg->output_scanline >= jpeg->output_height || jpeg_read_scanlines(jpeg, rows, 1) != 1) {
    say(text, room, "no more rows");
    return 0;
  }
  if (jpeg->output_scanline == jpeg->output_height) jpeg_finish_decompress(jpeg);
  return 1;
}

typedef struct {
  struct jpeg_compress_struct jpeg;
  Errors errors;
  unsigned char *file;
  unsigned long length;
} Writer;

static int compress(Writer *writer, const unsigned char *rgb, unsigned width, unsigned height, int quality) {
  struct jpeg_compress_struct *jpeg = &writer->jpeg;
  jpeg->err = errors_of(&writer->errors);
  if (setjmp(writer->errors.back)) return 0;
  jpeg_create_compress(jpeg);
  jpeg_mem_dest(jpeg, &writer->file, &writer->length);
  jpeg->image_width = width;
  jpeg->image_height = height;
  jpeg->input_components = 3;
  jpeg->in_color_space = JCS_RGB;
  jpeg_c_set_int_param(jpeg, JINT_COMPRESS_PROFILE, JCP_FASTEST);
  jpeg_set_defaults(jpeg);
  jpeg_set_quality(jpeg, quality, TRUE);
  jpeg_start_compress(jpeg, TRUE);
  while (jpeg->next_scanline < jpeg->image_height) {
    JSAMPROW rows[1] = {(JSAMPROW)(rgb + (size_t)jpeg->next_scanline * width * 3)};
    jpeg_write_scanlines(jpeg, rows, 1);
  }
  jpeg_finish_compress(jpeg);
  return 1;
}

/* A JPEG file of RGB pixels in memory that qformer_jpeg_free gives back. NULL, and why in `text`, if it fails. */
unsigned char *qformer_jpeg_write(const unsigned char *rgb, unsigned width, unsigned height, int quality, size_t *length, char *text,
                                  size_t room) {
  Writer *writer = calloc(1, sizeof(Writer));
  if (!writer) {
    say(text, room, "no memory");
    return NULL;
  }
  if (!compress(writer, rgb, width, height, quality)) {
    say(text, room, writer->errors.text);
    free(writer->file);
    writer->file = NULL;
  }
  jpeg_destroy_compress(&writer->jpeg);
  unsigned char *file = writer->file;
  *length = writer->length;
  free(writer);
  return file;
}

void qformer_jpeg_free(unsigned char *file) { free(file); }
