/* Does nothing, to measure what running a task costs. */
int main(void) { return 0; }
