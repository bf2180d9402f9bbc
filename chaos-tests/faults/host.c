/* What a host does to a process that it runs: the wall clock jumps, the disk is slow or full.
 *
 * Loaded with LD_PRELOAD. The file that CHAOS_HOST names is mapped, so a fault begins and ends when a test
 * writes the three numbers there; without it nothing is changed. Time that only goes forward
 * (CLOCK_MONOTONIC) is left alone: a hypervisor that stops it stops the process, which SIGSTOP does too. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const struct {
    int64_t clock_ahead_seconds;
    int64_t disk_delay_microseconds;
    int64_t disk_is_full;
} quiet, *host = (void *)&quiet;

__attribute__((constructor)) static void map_host(void)
{
    const char *path = getenv("CHAOS_HOST");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof *host, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED)
        host = mapped;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int outcome = syscall(SYS_clock_gettime, clock, now);
    if (outcome == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += host->clock_ahead_seconds;
    return outcome;
}

time_t time(time_t *out)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}

static void wait_for_disk(void)
{
    if (host->disk_delay_microseconds > 0)
        usleep(host->disk_delay_microseconds);
}

static int is_full(void)
{
    if (!host->disk_is_full)
        return 0;
    errno = ENOSPC;
    return 1;
}

int fsync(int file)
{
    wait_for_disk();
    return syscall(SYS_fsync, file);
}

int fdatasync(int file)
{
    wait_for_disk();
    return syscall(SYS_fdatasync, file);
}

int sync_file_range(int file, off64_t from, off64_t length, unsigned flags)
{
    wait_for_disk();
    return syscall(SYS_sync_file_range, file, from, length, flags);
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at)
{
    wait_for_disk();
    return is_full() ? -1 : syscall(SYS_pwrite64, file, bytes, count, at);
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t at)
{
    return pwrite64(file, bytes, count, at);
}

int ftruncate64(int file, off64_t length)
{
    struct stat now;
    if (host->disk_is_full && syscall(SYS_fstat, file, &now) == 0 && length > now.st_size && is_full())
        return -1;
    return syscall(SYS_ftruncate, file, length);
}

int ftruncate(int file, off_t length)
{
    return ftruncate64(file, length);
}
