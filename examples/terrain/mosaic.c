/* mosaic OUT.png RAMP SHADE-TILE...
 *
 * Joins shade tiles to one RGB picture: the colour of the height, times the light. RAMP is "level,r,g,b;..." with
 * levels rising from 0 to 1 and colours from 0 to 255; between two levels colours mix linearly.
 */
#include "png.h"
#include "tile.h"

enum { STEPS_MAX = 32 };

static double ramp[STEPS_MAX][4];
static int step_count;

static void read_ramp(const char *text) {
    const char *rest = text;
    for (;;) {
        if (step_count == STEPS_MAX) fail("has too many steps", text);
        for (int i = 0; i < 4; i++) {
            char *end;
            ramp[step_count][i] = strtod(rest, &end);
            if (end == rest || (i < 3 && *end != ',')) fail("a ramp is level,r,g,b;...", text);
            rest = end + (i < 3);
        }
        step_count++;
        if (*rest == '\0') break;
        if (*rest++ != ';') fail("a ramp is level,r,g,b;...", text);
    }
    if (step_count < 2) fail("needs two steps or more", text);
}

static double mixed(uint32_t level, int channel) {
    double at = (double)level / 65535.0;
    int step = 0;
    while (step < step_count - 2 && at > ramp[step + 1][0]) step++;
    double part = (at - ramp[step][0]) / (ramp[step + 1][0] - ramp[step][0]);
    return ramp[step][channel] + part * (ramp[step + 1][channel] - ramp[step][channel]);
}

static double channels[65536][3];

static uint8_t lit(double colour, uint32_t shade) {
    double value = colour * ((double)shade / 65535.0) * 1.25;
    return value >= 255.0 ? 255 : (uint8_t)(value + 0.5);
}

static void paint(const char *name, struct place *whole, uint8_t **picture, uint8_t **painted) {
    struct place place;
    FILE *in = open_tile(name, "IOCSHD1", &place);
    if (*picture == NULL) {
        size_t cells = (size_t)place.all_rows * place.all_cols;
        *whole = place;
        *picture = get_memory(cells * 3);
        *painted = get_memory(cells);
        memset(*painted, 0, cells);
    }
    if (place.all_rows != whole->all_rows || place.all_cols != whole->all_cols) fail("is of another picture", name);
    size_t cells = (size_t)place.rows * place.cols;
    uint16_t *shades = get_memory(cells * 4), *levels = shades + cells;
    read_exactly(in, shades, cells * 4, name);
    fclose(in);
    for (uint32_t row = 0; row < place.rows; row++)
        for (uint32_t col = 0; col < place.cols; col++) {
            size_t from = (size_t)row * place.cols + col;
            size_t to = (size_t)(place.row0 + row) * whole->all_cols + place.col0 + col;
            for (int i = 0; i < 3; i++) (*picture)[to * 3 + i] = lit(channels[levels[from]][i], shades[from]);
            (*painted)[to] = 1;
        }
    free(shades);
}

int main(int argc, char **argv) {
    struct place whole;
    uint8_t *picture = NULL, *painted = NULL;
    if (argc < 4) fail("usage: mosaic OUT.png RAMP SHADE-TILE...", "mosaic");
    read_ramp(argv[2]);
    for (uint32_t level = 0; level < 65536; level++)
        for (int i = 0; i < 3; i++) channels[level][i] = mixed(level, i + 1);
    for (int i = 3; i < argc; i++) {
        paint(argv[i], &whole, &picture, &painted);
        tell((uint32_t)(i - 2), (uint32_t)(argc - 2), "joining");
    }
    for (size_t cell = 0; cell < (size_t)whole.all_rows * whole.all_cols; cell++)
        if (!painted[cell]) fail("a part of the picture is in none of the tiles", argv[1]);
    write_png(argv[1], picture, whole.all_cols, whole.all_rows);
    tell(1, 1, "written");
    return 0;
}
