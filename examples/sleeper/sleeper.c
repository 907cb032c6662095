/* sleeper SECONDS: tells its progress every 100 ms, for as long as it was told; to try cancelling and killing. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv) {
    int steps = (argc > 1 ? atoi(argv[1]) : 10) * 10;
    struct timespec tenth = {0, 100000000};
    for (int step = 1; step <= steps; step++) {
        nanosleep(&tenth, NULL);
        printf("ioc:progress %d.%03d step %d of %d\n", step / steps, step * 1000 / steps % 1000, step, steps);
        fflush(stdout);
    }
    puts("slept well");
    return 0;
}
