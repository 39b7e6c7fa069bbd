/* Fails one call of the C library on files below a folder: loaded before it (LD_PRELOAD), told by fault_arm what to do. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum kind { NONE, WRITE, FSYNC, RENAME, READ };
static char folder[PATH_MAX];
static enum kind armed_kind;
static long armed_number, seen;
static int armed_error; /* 0: a write that writes only half of what it was given */

/* Count calls of a kind on files below `below`, and fail the one of that number; 0 only counts. */
void fault_arm(const char *below, int kind, long number, int error)
{
    snprintf(folder, sizeof folder, "%s", below);
    armed_kind = kind, armed_number = number, armed_error = error, seen = 0;
}

long fault_seen(void) { return seen; }

static int is_below(const char *path) { return *folder && strncmp(path, folder, strlen(folder)) == 0; }

static int is_due(enum kind kind, const char *path)
{
    if (kind != armed_kind || !is_below(path))
        return 0;
    return __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST) == armed_number;
}

static int is_due_on(enum kind kind, int descriptor)
{
    char link[64], path[PATH_MAX];
    if (kind != armed_kind)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return is_due(kind, path);
}

static int fail(void) { errno = armed_error; return -1; }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int descriptor, const void *bytes, size_t count)
{
    if (is_due_on(WRITE, descriptor)) {
        if (armed_error)
            return fail();
        count = (count + 1) / 2;
    }
    return REAL(write)(descriptor, bytes, count);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t at)
{
    if (is_due_on(WRITE, descriptor)) {
        if (armed_error)
            return fail();
        count = (count + 1) / 2;
    }
    return REAL(pwrite)(descriptor, bytes, count, at);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t count, off64_t at)
{
    return pwrite(descriptor, bytes, count, at);
}

ssize_t read(int descriptor, void *bytes, size_t count)
{
    return is_due_on(READ, descriptor) ? fail() : REAL(read)(descriptor, bytes, count);
}

ssize_t pread(int descriptor, void *bytes, size_t count, off_t at)
{
    return is_due_on(READ, descriptor) ? fail() : REAL(pread)(descriptor, bytes, count, at);
}

ssize_t pread64(int descriptor, void *bytes, size_t count, off64_t at) { return pread(descriptor, bytes, count, at); }

int fsync(int descriptor) { return is_due_on(FSYNC, descriptor) ? fail() : REAL(fsync)(descriptor); }

int fdatasync(int descriptor) { return is_due_on(FSYNC, descriptor) ? fail() : REAL(fdatasync)(descriptor); }

int rename(const char *from, const char *to) { return is_due(RENAME, to) ? fail() : REAL(rename)(from, to); }

int renameat(int in, const char *from, int into, const char *to)
{
    return is_due(RENAME, to) ? fail() : REAL(renameat)(in, from, into, to);
}
