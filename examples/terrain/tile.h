/* What both terrain programs share: the two tile formats, reading, failing, progress.
 *
 * Elevation tile: magic "IOCDEM1\0", then little-endian u32 rows, cols, row0, col0, all_rows, all_cols (of the whole
 * picture), f64 dx, dy (metres), lowest, highest (of the whole picture), then (rows + 2) x (cols + 2) f64 heights in
 * metres: a halo of one cell on each side, so that tiles join without a seam.
 * Shade tile: magic "IOCSHD1\0", the same six u32, then rows x cols u16 shade, rows x cols u16 height (0 is the
 * lowest of the picture, 65535 the highest).
 *
 * WebAssembly is little-endian, so memory and file agree. Only + - * / and sqrt are used on floats: IEEE 754 rounds
 * each of them in one way, and the same formula in NumPy gives the same bits.
 */
#ifndef TILE_H
#define TILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIDE_MAX = 32768, CELLS_MAX = 64 << 20 };

struct place {
    uint32_t rows, cols, row0, col0, all_rows, all_cols;
};

static void fail(const char *what, const char *name) {
    fprintf(stderr, "%s: %s\n", name, what);
    exit(1);
}

static void tell(uint32_t done, uint32_t all, const char *text) {
    uint32_t thousandths = (uint32_t)((uint64_t)done * 1000 / all);
    printf("ioc:progress %u.%03u %s\n", thousandths / 1000, thousandths % 1000, text);
    fflush(stdout);
}

static void *get_memory(size_t size) {
    void *memory = malloc(size);
    if (memory == NULL) fail("not enough memory", "terrain");
    return memory;
}

static void read_exactly(FILE *file, void *into, size_t size, const char *name) {
    if (fread(into, 1, size, file) != size) fail("file is too short", name);
}

static FILE *open_tile(const char *name, const char *magic, struct place *place) {
    char found[8];
    FILE *file = fopen(name, "rb");
    if (file == NULL) fail("cannot be opened", name);
    read_exactly(file, found, sizeof found, name);
    if (memcmp(found, magic, 8) != 0) fail("is not such a tile", name);
    read_exactly(file, place, sizeof *place, name);
    if (place->rows == 0 || place->cols == 0 || place->all_rows > SIDE_MAX || place->all_cols > SIDE_MAX ||
        (uint64_t)place->all_rows * place->all_cols > CELLS_MAX || place->rows > place->all_rows ||
        place->cols > place->all_cols || place->row0 > place->all_rows - place->rows ||
        place->col0 > place->all_cols - place->cols)
        fail("has an impossible size", name);
    return file;
}

static void write_exactly(FILE *file, const void *from, size_t size, const char *name) {
    if (fwrite(from, 1, size, file) != size) fail("cannot be written", name);
}

#endif
