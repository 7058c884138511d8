/* A disk that loses what was not synced, for one process: LD_PRELOAD on Linux.

   Below one folder it watches what is written, cut, made, renamed and removed. What is written goes
   to the file at once, so that the process sees it, and is remembered until fsync or fdatasync of
   that file; a name in a folder until fsync of the folder. Before the n-th such call the process
   dies as by a power cut: what was not synced is undone, and SIGKILL follows. Torn, it undoes only
   some of it: of each file any of the writes, the last of them perhaps half, in sectors; of the
   names those that came last. Knows no mmap and no io_uring; one thread. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILES = 256, CHANGES = 4096, NAMES = 1024, SECTOR = 512 };

typedef struct { off_t at; size_t size; char *data; } Change; /* data NULL: cut to size at */

typedef struct {
    ino_t inode;
    int fd;          /* of our own, to undo with */
    char *synced;    /* its content at the last sync */
    size_t size;
    Change changes[CHANGES];
    int count;
} File;

typedef enum { MADE, REMOVED, RENAMED } Kind;

typedef struct {
    Kind kind;
    char path[PATH_MAX], from[PATH_MAX];
    ino_t lost; /* of the file that the name stood for before */
} Name;

static char root[PATH_MAX];
static size_t root_size;
static long calls, last = -1;
static int torn, active, inside;
static unsigned long drawn;
static File *files[FILES];
static int file_count;
static Name *names;
static int name_count;

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static ssize_t real_pwrite(int fd, const void *data, size_t size, off_t at)
{
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    return real(fd, data, size, at);
}

static unsigned long draw(void)
{
    drawn = drawn * 6364136223846793005UL + 1442695040888963407UL;
    return drawn >> 33;
}

static void die_of(const char *what)
{
    dprintf(2, "lostwrites: %s: %s\n", what, strerror(errno));
    _exit(70);
}

static char *content(int fd, size_t *size)
{
    struct stat status;
    if (fstat(fd, &status)) die_of("fstat");
    char *data = malloc((size_t)status.st_size + 1);
    size_t done = 0;
    while (done < (size_t)status.st_size) {
        ssize_t got = pread(fd, data + done, (size_t)status.st_size - done, (off_t)done);
        if (got <= 0) die_of("pread");
        done += (size_t)got;
    }
    *size = done;
    return data;
}

/* Return what is known of a file, from its first change on; NULL where it is not watched. */
static File *file_of(int fd)
{
    struct stat status;
    char link[64], path[PATH_MAX];
    if (fstat(fd, &status) || !S_ISREG(status.st_mode)) return NULL;
    for (int at = 0; at < file_count; at++)
        if (files[at]->inode == status.st_ino) return files[at];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return NULL;
    path[size] = 0;
    if (strncmp(path, root, root_size)) return NULL;
    if (file_count == FILES) die_of("too many files");
    File *file = calloc(1, sizeof *file);
    file->inode = status.st_ino;
    inside++;
    file->fd = open(link, O_RDWR | O_CLOEXEC);
    inside--;
    if (file->fd < 0) die_of("open again");
    file->synced = content(file->fd, &file->size);
    return files[file_count++] = file;
}

static File *file_at(const char *path)
{
    inside++;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    inside--;
    if (fd < 0) return NULL;
    File *file = file_of(fd);
    close(fd);
    return file;
}

static void note(File *file, const void *data, size_t size, off_t at)
{
    if (file->count == CHANGES) die_of("too many writes without a sync");
    Change *change = &file->changes[file->count++];
    change->at = at;
    change->size = size;
    change->data = NULL;
    if (data) change->data = memcpy(malloc(size + 1), data, size);
}

static void put(int fd, const char *data, size_t size, off_t at)
{
    if (size && real_pwrite(fd, data, size, at) != (ssize_t)size) die_of("undo");
}

/* Bring a file back to its last sync, plus some of what came later where it is torn. */
static void undo(File *file)
{
    if (!file->count) return;
    inside++;
    if (ftruncate(file->fd, 0)) die_of("undo");
    put(file->fd, file->synced, file->size, 0);
    for (int at = 0; torn && at < file->count; at++) {
        Change *change = &file->changes[at];
        if (draw() % 2) continue;
        size_t kept = change->size;
        if (draw() % 4 == 0) kept = kept / SECTOR ? draw() % (kept / SECTOR + 1) * SECTOR : 0;
        if (change->data) put(file->fd, change->data, kept, change->at);
        else if (ftruncate(file->fd, change->at)) die_of("undo");
    }
    inside--;
}

/* Make a name stand again for the file it stood for. */
static void name_again(const char *path, ino_t inode)
{
    for (int at = 0; at < file_count; at++) {
        if (files[at]->inode != inode) continue;
        size_t size;
        char *data = content(files[at]->fd, &size);
        int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (fd < 0) die_of("undo of a name");
        put(fd, data, size, 0);
        close(fd);
        return;
    }
    die_of("undo of a name");
}

static void power_cut(void)
{
    for (int at = 0; at < file_count; at++) undo(files[at]);
    int kept = torn && name_count ? (int)(draw() % (unsigned)(name_count + 1)) : 0;
    inside++;
    for (int at = name_count - 1; at >= kept; at--) {
        Name *name = &names[at];
        if (name->kind == MADE) unlink(name->path);
        if (name->kind == RENAMED && rename(name->path, name->from)) die_of("undo of a name");
        if (name->lost) name_again(name->path, name->lost);
    }
    kill(getpid(), SIGKILL);
}

static int watched(const char *path, char *whole)
{
    char folder[PATH_MAX], real[PATH_MAX];
    if (!active || inside || !path) return 0;
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (!slash) return 0;
    *slash = 0;
    if (!realpath(*folder ? folder : "/", real)) return 0;
    if (snprintf(whole, PATH_MAX, "%s/%s", real, slash + 1) >= PATH_MAX) return 0;
    return !strncmp(whole, root, root_size);
}

static void step(void)
{
    if (++calls == last) power_cut();
}

static void name_changed(Kind kind, const char *path, const char *from, ino_t lost)
{
    if (name_count == NAMES) die_of("too many names without a sync");
    Name *name = &names[name_count++];
    name->kind = kind;
    name->lost = lost;
    snprintf(name->path, PATH_MAX, "%s", path);
    snprintf(name->from, PATH_MAX, "%s", from);
}

/* What a folder lists is on disk: forget the changes of its names. */
static void folder_synced(int fd)
{
    char link[64], folder[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, folder, sizeof folder - 1);
    if (size < 0) return;
    int kept = 0;
    for (int at = 0; at < name_count; at++) {
        const char *slash = strrchr(names[at].path, '/');
        if (slash - names[at].path != size || strncmp(names[at].path, folder, (size_t)size))
            names[kept++] = names[at];
    }
    name_count = kept;
}

/* Begin to watch a folder; die before the call of number `when`, 0 for none. */
void lostwrites_begin(const char *folder, long when, int is_torn, unsigned long seed)
{
    if (!realpath(folder, root)) die_of("folder");
    root_size = strlen(root);
    names = calloc(NAMES, sizeof *names);
    calls = 0, last = when, torn = is_torn, drawn = seed * 2 + 1, active = 1;
}

long lostwrites_calls(void) { return calls; }

void lostwrites_die(void) { power_cut(); }

#define PWRITE(name) \
    ssize_t name(int fd, const void *data, size_t size, off_t at) \
    { \
        REAL(ssize_t, name, int, const void *, size_t, off_t); \
        File *file = active && !inside ? file_of(fd) : NULL; \
        if (file) step(); \
        ssize_t done = real(fd, data, size, at); \
        if (file && done > 0) note(file, data, (size_t)done, at); \
        return done; \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(ssize_t, write, int, const void *, size_t);
    File *file = active && !inside ? file_of(fd) : NULL;
    if (file) step();
    ssize_t done = real(fd, data, size);
    if (file && done > 0) note(file, data, (size_t)done, lseek(fd, 0, SEEK_CUR) - done);
    return done;
}

#define FTRUNCATE(name) \
    int name(int fd, off_t size) \
    { \
        REAL(int, name, int, off_t); \
        File *file = active && !inside ? file_of(fd) : NULL; \
        if (file) step(); \
        int failed = real(fd, size); \
        if (file && !failed) note(file, NULL, 0, size); \
        return failed; \
    }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

static void synced(int fd)
{
    struct stat status;
    if (!active || inside || fstat(fd, &status)) return;
    if (S_ISDIR(status.st_mode)) {
        folder_synced(fd);
        return;
    }
    File *file = file_of(fd);
    if (!file) return;
    free(file->synced);
    file->synced = content(file->fd, &file->size);
    for (int at = 0; at < file->count; at++) free(file->changes[at].data);
    file->count = 0;
}

#define SYNC(name) \
    int name(int fd) \
    { \
        REAL(int, name, int); \
        if (active && !inside) step(); \
        int failed = real(fd); \
        if (!failed) synced(fd); \
        return failed; \
    }
SYNC(fsync)
SYNC(fdatasync)

static int opened(const char *path, int flags, int there, int fd)
{
    char whole[PATH_MAX];
    if (fd < 0 || !watched(path, whole)) return fd;
    if (flags & O_CREAT && !there) {
        if (!file_of(fd)) die_of("a new file");
        name_changed(MADE, whole, "", 0);
    }
    return fd;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        REAL(int, name, const char *, int, ...); \
        char whole[PATH_MAX]; \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = va_arg(more, mode_t); \
        va_end(more); \
        int there = active && !inside && access(path, F_OK) == 0; \
        if (watched(path, whole)) { \
            if (there && flags & O_TRUNC) { \
                File *file = file_at(path); \
                if (file) step(), note(file, NULL, 0, 0); \
            } \
            if (!there && flags & O_CREAT) step(); \
        } \
        return opened(path, flags, there, real(path, flags, mode)); \
    }
OPEN(open)
OPEN(open64)

#define UNLINK(name) \
    int name(const char *path) \
    { \
        REAL(int, name, const char *); \
        char whole[PATH_MAX]; \
        File *file = watched(path, whole) ? file_at(path) : NULL; \
        if (file) step(); \
        int failed = real(path); \
        if (file && !failed) name_changed(REMOVED, whole, "", file->inode); \
        return failed; \
    }
UNLINK(unlink)

int rename(const char *from, const char *to)
{
    REAL(int, rename, const char *, const char *);
    char whole_from[PATH_MAX], whole_to[PATH_MAX];
    if (!watched(from, whole_from) || !watched(to, whole_to)) return real(from, to);
    File *over = file_at(to);
    file_at(from);
    step();
    int failed = real(from, to);
    if (!failed) name_changed(RENAMED, whole_to, whole_from, over ? over->inode : 0);
    return failed;
}
