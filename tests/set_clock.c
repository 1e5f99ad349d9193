/* Sets the clock of one program: a library that is loaded before the C library, and adds to each wall
 * clock time the nanoseconds that stand at the beginning of the file CLOCK_AHEAD. The monotonic clocks
 * and whatever waits by them are as they were, as where the machine's own clock is set. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static volatile const int64_t *ahead;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CLOCK_AHEAD");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED)
        abort(); /* else a clock that was never set would pass for one that was */
    ahead = mapped;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t set = now->tv_sec * SECOND + now->tv_nsec + *ahead;
        now->tv_sec = set / SECOND;
        now->tv_nsec = set % SECOND;
    }
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec set;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &set))
        return -1;
    now->tv_sec = set.tv_sec;
    now->tv_usec = set.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *kept)
{
    struct timespec set;
    if (clock_gettime(CLOCK_REALTIME, &set))
        return -1;
    if (kept)
        *kept = set.tv_sec;
    return set.tv_sec;
}
