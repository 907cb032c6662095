/* hillshade IN OUT EXAGGERATION LIGHT...
 *
 * Shades one elevation tile. LIGHT is "x,y,z,weight": a unit vector towards the light (x east, y north, z up) and its
 * part of the whole. Slopes by Horn's method (1981): differences over the eight neighbours.
 */
#include <math.h>

#include "tile.h"

enum { LIGHTS_MAX = 16 };

static double lights[LIGHTS_MAX][4];

static void read_light(const char *text, double light[4]) {
    const char *rest = text;
    for (int i = 0; i < 4; i++) {
        char *end;
        light[i] = strtod(rest, &end);
        if (end == rest || *end != (i < 3 ? ',' : '\0')) fail("a light is x,y,z,weight", text);
        rest = end + 1;
    }
}

static uint16_t to_u16(double value) {
    if (!(value > 0.0)) return 0;
    if (value > 1.0) value = 1.0;
    return (uint16_t)(value * 65535.0 + 0.5);
}

int main(int argc, char **argv) {
    struct place place;
    double measures[4];
    if (argc < 5 || argc > 4 + LIGHTS_MAX) fail("usage: hillshade IN OUT EXAGGERATION X,Y,Z,WEIGHT...", "hillshade");
    int light_count = argc - 4;
    double exaggeration = strtod(argv[3], NULL);
    for (int i = 0; i < light_count; i++) read_light(argv[4 + i], lights[i]);

    FILE *in = open_tile(argv[1], "IOCDEM1", &place);
    read_exactly(in, measures, sizeof measures, argv[1]);
    double across = 8.0 * measures[0], along = 8.0 * measures[1];
    double lowest = measures[2], span = measures[3] - measures[2];
    size_t width = (size_t)place.cols + 2, cells = (size_t)place.rows * place.cols;
    double *heights = get_memory(width * (place.rows + 2) * sizeof(double));
    read_exactly(in, heights, width * (place.rows + 2) * sizeof(double), argv[1]);
    fclose(in);

    uint16_t *shades = get_memory(cells * 2), *levels = get_memory(cells * 2);
    for (uint32_t row = 0; row < place.rows; row++) {
        const double *above = heights + row * width, *here = above + width, *below = here + width;
        for (uint32_t col = 0; col < place.cols; col++) {
            double east = (above[col + 2] + 2.0 * here[col + 2] + below[col + 2]) -
                          (above[col] + 2.0 * here[col] + below[col]);
            double north = (above[col] + 2.0 * above[col + 1] + above[col + 2]) -
                           (below[col] + 2.0 * below[col + 1] + below[col + 2]);
            double p = exaggeration * east / across, q = exaggeration * north / along;
            double length = sqrt(1.0 + p * p + q * q), shade = 0.0;
            for (int i = 0; i < light_count; i++) {
                double lit = (lights[i][2] - lights[i][0] * p - lights[i][1] * q) / length;
                if (lit > 0.0) shade = shade + lights[i][3] * lit;
            }
            shades[row * place.cols + col] = to_u16(shade);
            levels[row * place.cols + col] = to_u16((here[col + 1] - lowest) / span);
        }
        if (row % 64 == 63) tell(row + 1, place.rows, "shading");
    }

    FILE *out = fopen(argv[2], "wb");
    if (out == NULL) fail("cannot be written", argv[2]);
    write_exactly(out, "IOCSHD1", 8, argv[2]);
    write_exactly(out, &place, sizeof place, argv[2]);
    write_exactly(out, shades, cells * 2, argv[2]);
    write_exactly(out, levels, cells * 2, argv[2]);
    if (fclose(out) != 0) fail("cannot be written", argv[2]);
    tell(1, 1, "shaded");
    return 0;
}
