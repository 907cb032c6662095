/* A small PNG writer (W3C PNG, RFC 1950, RFC 1951): 8-bit RGB, one filter chosen per row, Huffman codes fitted to
 * the picture. No string matching: after filtering, terrain hardly repeats itself. */
#ifndef PNG_H
#define PNG_H

#include "tile.h"

enum { SYMBOLS = 257, CODE_BITS_MAX = 15, BLOCK_BYTES = 1 << 16 };

struct bits {
    uint8_t *data;
    size_t size;
    uint64_t held;
    int count;
};

static void put_bits(struct bits *out, uint32_t value, int count) {
    out->held |= (uint64_t)value << out->count;
    for (out->count += count; out->count >= 8; out->count -= 8) {
        out->data[out->size++] = (uint8_t)out->held;
        out->held >>= 8;
    }
}

/* Lengths of a Huffman code for `count` symbols, none above `longest` bits. Every weight that is not zero gets one. */
static void fit_code(const uint32_t *weights, int count, int longest, uint8_t *lengths) {
    static uint32_t scaled[SYMBOLS];
    static uint64_t heap_weight[2 * SYMBOLS];
    static int parent[2 * SYMBOLS], alive[2 * SYMBOLS];
    memcpy(scaled, weights, (size_t)count * sizeof *weights);
    for (;;) {
        int nodes = count, live = 0, deepest = 0;
        for (int i = 0; i < count; i++) {
            heap_weight[i] = scaled[i];
            parent[i] = -1;
            if (scaled[i] > 0) alive[live++] = i;
        }
        while (live > 1) { /* join the two lightest; 257 symbols do not need a heap */
            for (int pick = 0; pick < 2; pick++) {
                int best = pick;
                for (int i = pick + 1; i < live; i++)
                    if (heap_weight[alive[i]] < heap_weight[alive[best]]) best = i;
                int swap = alive[pick];
                alive[pick] = alive[best];
                alive[best] = swap;
            }
            heap_weight[nodes] = heap_weight[alive[0]] + heap_weight[alive[1]];
            parent[alive[0]] = parent[alive[1]] = nodes;
            parent[nodes] = -1;
            alive[0] = nodes++;
            alive[1] = alive[--live];
        }
        for (int i = 0; i < count; i++) {
            int depth = 0;
            for (int node = i; scaled[i] > 0 && parent[node] >= 0; node = parent[node]) depth++;
            lengths[i] = (uint8_t)(scaled[i] > 0 && depth == 0 ? 1 : depth);
            if (depth > deepest) deepest = depth;
        }
        if (deepest <= longest) return;
        for (int i = 0; i < count; i++) /* flatter weights give shorter codes */
            if (scaled[i] > 0) scaled[i] = scaled[i] / 2 + 1;
    }
}

/* Canonical codes of RFC 1951 section 3.2.2, with their bits reversed as they are sent. */
static void assign_codes(const uint8_t *lengths, int count, uint16_t *codes) {
    int of_length[CODE_BITS_MAX + 1] = {0}, next[CODE_BITS_MAX + 2] = {0};
    for (int i = 0; i < count; i++) of_length[lengths[i]]++;
    of_length[0] = 0;
    for (int bits = 1; bits <= CODE_BITS_MAX; bits++) next[bits + 1] = (next[bits] + of_length[bits]) << 1;
    for (int i = 0; i < count; i++) {
        int code = lengths[i] ? next[lengths[i]]++ : 0, turned = 0;
        for (int bit = 0; bit < lengths[i]; bit++) turned |= ((code >> bit) & 1) << (lengths[i] - 1 - bit);
        codes[i] = (uint16_t)turned;
    }
}

static void put_block(struct bits *out, const uint8_t *data, size_t size, int last) {
    static const uint8_t order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    uint32_t weights[SYMBOLS] = {0}, length_weights[19] = {0};
    uint8_t lengths[SYMBOLS], length_lengths[19];
    uint16_t codes[SYMBOLS], length_codes[19];
    for (size_t i = 0; i < size; i++) weights[data[i]]++;
    weights[256] = 1; /* end of block */
    fit_code(weights, SYMBOLS, CODE_BITS_MAX, lengths);
    assign_codes(lengths, SYMBOLS, codes);
    for (int i = 0; i < SYMBOLS; i++) length_weights[lengths[i]]++;
    length_weights[0]++; /* the one distance code, not used */
    fit_code(length_weights, 19, 7, length_lengths);
    assign_codes(length_lengths, 19, length_codes);
    put_bits(out, (uint32_t)last | 2 << 1, 3);
    put_bits(out, 0 | 0 << 5 | 15 << 10, 14); /* 257 literals, 1 distance, 19 lengths */
    for (int i = 0; i < 19; i++) put_bits(out, length_lengths[order[i]], 3);
    for (int i = 0; i < SYMBOLS; i++) put_bits(out, length_codes[lengths[i]], length_lengths[lengths[i]]);
    put_bits(out, length_codes[0], length_lengths[0]);
    for (size_t i = 0; i < size; i++) put_bits(out, codes[data[i]], lengths[data[i]]);
    put_bits(out, codes[256], lengths[256]);
}

static uint8_t predict(int filter, int left, int up, int corner) {
    if (filter == 1) return (uint8_t)left;
    if (filter == 2) return (uint8_t)up;
    if (filter == 3) return (uint8_t)((left + up) / 2);
    if (filter != 4) return 0;
    int guess = left + up - corner, a = abs(guess - left), b = abs(guess - up), c = abs(guess - corner);
    return (uint8_t)(a <= b && a <= c ? left : b <= c ? up : corner);
}

/* One row, with the filter whose differences are smallest; `above` is NULL for the first. Returns its bytes. */
static size_t filter_row(const uint8_t *row, const uint8_t *above, size_t width, uint8_t *into) {
    uint32_t least = UINT32_MAX;
    int chosen = 0;
    for (int pass = 0; pass < 6; pass++) { /* the last pass writes */
        int filter = pass < 5 ? pass : chosen;
        uint32_t sum = 0;
        for (size_t i = 0; i < width; i++) {
            int left = i >= 3 ? row[i - 3] : 0, up = above ? above[i] : 0, corner = i >= 3 && above ? above[i - 3] : 0;
            uint8_t rest = (uint8_t)(row[i] - predict(filter, left, up, corner));
            if (pass == 5) into[1 + i] = rest;
            sum += rest < 128 ? rest : 256u - rest;
        }
        if (pass < 5 && sum < least) least = sum, chosen = filter;
    }
    into[0] = (uint8_t)chosen;
    return width + 1;
}

static uint32_t adler32(const uint8_t *data, size_t size) {
    uint32_t a = 1, b = 0;
    for (size_t i = 0; i < size; i++) {
        a = (a + data[i]) % 65521;
        b = (b + a) % 65521;
    }
    return b << 16 | a;
}

static uint32_t crc32(uint32_t crc, const uint8_t *data, size_t size) {
    static uint32_t table[256];
    if (table[1] == 0)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; bit++) value = value & 1 ? value >> 1 ^ 0xEDB88320u : value >> 1;
            table[i] = value;
        }
    for (size_t i = 0; i < size; i++) crc = table[(crc ^ data[i]) & 255] ^ crc >> 8;
    return crc;
}

static void put_u32(uint8_t *into, uint32_t value) {
    for (int i = 0; i < 4; i++) into[i] = (uint8_t)(value >> (24 - 8 * i));
}

static void write_chunk(FILE *file, const char *name, const char *kind, const uint8_t *data, size_t size) {
    uint8_t number[4];
    put_u32(number, (uint32_t)size);
    write_exactly(file, number, 4, name);
    write_exactly(file, kind, 4, name);
    if (size > 0) write_exactly(file, data, size, name);
    put_u32(number, ~crc32(crc32(0xFFFFFFFFu, (const uint8_t *)kind, 4), data, size));
    write_exactly(file, number, 4, name);
}

static void write_png(const char *name, const uint8_t *picture, uint32_t cols, uint32_t rows) {
    size_t width = (size_t)cols * 3, size = 0, all = (width + 1) * rows;
    uint8_t *filtered = get_memory(all), header[13] = {0};
    for (uint32_t row = 0; row < rows; row++) {
        const uint8_t *here = picture + row * width;
        size += filter_row(here, row ? here - width : NULL, width, filtered + size);
    }
    /* A fitted code never takes more than 9 bits a byte on average, and 320 bytes a block to describe. */
    struct bits out = {get_memory(all + all / 8 + (all / BLOCK_BYTES + 1) * 512 + 64), 0, 0, 0};
    put_bits(&out, 0x78 | 0x01 << 8, 16);
    for (size_t at = 0; at < all; at += BLOCK_BYTES) {
        size_t part = all - at < BLOCK_BYTES ? all - at : BLOCK_BYTES;
        put_block(&out, filtered + at, part, at + part == all);
    }
    if (out.count > 0) put_bits(&out, 0, 8 - out.count);
    put_u32(out.data + out.size, adler32(filtered, all));
    out.size += 4;

    put_u32(header, cols);
    put_u32(header + 4, rows);
    header[8] = 8; /* bits */
    header[9] = 2; /* RGB */
    FILE *file = fopen(name, "wb");
    if (file == NULL) fail("cannot be written", name);
    write_exactly(file, "\x89PNG\r\n\x1a\n", 8, name);
    write_chunk(file, name, "IHDR", header, sizeof header);
    write_chunk(file, name, "IDAT", out.data, out.size);
    write_chunk(file, name, "IEND", NULL, 0);
    if (fclose(file) != 0) fail("cannot be written", name);
    free(filtered);
    free(out.data);
}

#endif
