/* Greets whoever is named, tells where it looked, and writes a file: the smallest task with an output. */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    const char *place = getenv("PLACE");
    FILE *out = fopen("greeting.txt", "w");
    if (out == NULL) return 1;
    fprintf(out, "Hello, %s, from %s!\n", argc > 1 ? argv[1] : "world", place ? place : "somewhere");
    fclose(out);
    printf("ioc:progress 1 wrote greeting.txt\nHello, %s!\n", argc > 1 ? argv[1] : "world");
    return 0;
}
