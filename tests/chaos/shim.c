/* A disk and a clock that misbehave, for the relay alone: preloaded (LD_PRELOAD), it stands before the C library's calls.
 *
 * For files below CHAOS_SHIM_DIRECTORY it can let syncs and writes fail, and it keeps, in CHAOS_SHIM_SHADOW, what a disk whose
 * power is cut now would still have: what was synced, and by chance parts of what was not. The wall clock it can shift.
 * CHAOS_SHIM_CONTROL is a page of numbers that the harness writes and reads while the relay runs; `enum knob` names them. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

enum knob { FSYNC_ERRNO, WRITE_ERRNO, CLOCK_OFFSET_SECONDS, EARLY_PERCENT, FSYNCS_FAILED, WRITES_FAILED, FSYNCS, WRITES, CLOCK_READS, FSYNC_DELAY_MS, UNSYNCED };

static int64_t no_control[16];
static volatile int64_t *control = no_control;
static char directory[PATH_MAX], shadow[PATH_MAX - 64];
static size_t directory_length;

#define NEXT(name) \
    static __typeof__(&name) next; \
    if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static void count(enum knob knob) { __atomic_add_fetch((int64_t *)&control[knob], 1, __ATOMIC_RELAXED); }

/* ---- which files are ours ---- */

static int is_below(const char *path) {
    return directory_length && strncmp(path, directory, directory_length) == 0 &&
           (path[directory_length] == '/' || path[directory_length] == 0);
}

/* The path of an open file, if it is ours; the kernel knows it, however the descriptor was come by. */
static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int saved = errno;
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    errno = saved;
    if (length <= 0) return 0;
    path[length] = 0;
    return is_below(path);
}

/* ---- what a disk without power would have ---- */

struct range { off_t start, end; };

/* A file of ours: the content that the shadow has of it, and what was written since the last sync. */
struct file {
    ino_t inode;
    unsigned content;
    int is_whole, is_mapped;
    struct range *ranges;
    size_t length, capacity;
    struct file *next;
};

/* A name that is durable, and the content it names. */
struct name {
    char path[512];
    unsigned content;
    struct name *next;
};

static struct file *files;
static struct name *names;
static unsigned contents;
static pthread_mutex_t state = PTHREAD_MUTEX_INITIALIZER, syncing = PTHREAD_MUTEX_INITIALIZER;
static uint64_t chance = 0x9e3779b97f4a7c15;

static uint64_t draw(void) { return chance ^= chance << 13, chance ^= chance >> 7, chance ^= chance << 17; }

static void content_path(unsigned content, char *path) { snprintf(path, PATH_MAX, "%s/contents/%u", shadow, content); }

static int open_content(unsigned content) {
    NEXT(open);
    char path[PATH_MAX];
    content_path(content, path);
    return next(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
}

static struct file *file_of(ino_t inode) {
    for (struct file *file = files; file; file = file->next)
        if (file->inode == inode) return file;
    struct file *file = calloc(1, sizeof *file);
    file->inode = inode;
    file->content = ++contents;
    file->next = files;
    return files = file;
}

/* The inode may be another file's soon: what the shadow has of this one stays, under its content's number. */
static void forget(ino_t inode) {
    for (struct file **at = &files; *at; at = &(*at)->next)
        if ((*at)->inode == inode) {
            struct file *gone = *at;
            *at = gone->next;
            control[UNSYNCED] -= gone->length;
            free(gone->ranges);
            free(gone);
            return;
        }
}

static void mark(struct file *file, off_t start, off_t end) {
    if (file->is_whole || start >= end) return;
    if (file->length == 65536) {
        file->is_whole = 1;
        return;
    }
    if (file->length == file->capacity) {
        file->capacity = file->capacity ? 2 * file->capacity : 64;
        file->ranges = realloc(file->ranges, file->capacity * sizeof *file->ranges);
    }
    file->ranges[file->length++] = (struct range){start, end};
    control[UNSYNCED]++;
}

static void write_names(void) {
    char path[PATH_MAX], fresh[PATH_MAX];
    snprintf(path, sizeof path, "%s/names", shadow);
    snprintf(fresh, sizeof fresh, "%s/names.new", shadow);
    FILE *list = fopen(fresh, "we");
    for (struct name *name = names; name; name = name->next) fprintf(list, "%u %s\n", name->content, name->path);
    fclose(list);
    NEXT(rename);
    next(fresh, path);
}

static const char *relative(const char *path) { return path[directory_length] ? path + directory_length + 1 : ""; }

static void add_name(const char *path, unsigned content) {
    for (struct name *name = names; name; name = name->next)
        if (strcmp(name->path, path) == 0) {
            name->content = content;
            return;
        }
    struct name *name = calloc(1, sizeof *name);
    snprintf(name->path, sizeof name->path, "%s", path);
    name->content = content;
    name->next = names;
    names = name;
}

/* A synced file has a name on every file system in use, though POSIX wants the directory synced for that. */
static void ensure_name(const char *path, unsigned content) {
    for (struct name *name = names; name; name = name->next)
        if (name->content == content) return;
    add_name(relative(path), content);
    write_names();
}

/* A synced directory: its names are as they are now. Those of its subdirectories are for their own syncs. */
static void sync_directory(const char *path) {
    const char *below = relative(path);
    size_t length = strlen(below);
    for (struct name **at = &names; *at;) {
        struct name *name = *at;
        const char *slash = strrchr(name->path, '/');
        size_t parent = slash ? (size_t)(slash - name->path) : 0;
        if (parent == length && strncmp(name->path, below, length) == 0) {
            *at = name->next;
            free(name);
        } else {
            at = &name->next;
        }
    }
    DIR *listing = opendir(path);
    struct dirent *entry;
    while (listing && (entry = readdir(listing))) {
        char child[PATH_MAX + 256];
        struct stat found;
        snprintf(child, sizeof child, "%s/%s", path, entry->d_name);
        if (lstat(child, &found) == 0 && S_ISREG(found.st_mode)) {
            unsigned content = file_of(found.st_ino)->content;
            close(open_content(content));
            add_name(relative(child), content);
        }
    }
    if (listing) closedir(listing);
    write_names();
}

/* What a sync is about to make durable: copied before, so that a write during the sync is not taken for durable. */
struct snapshot {
    unsigned content;
    off_t size;
    size_t length;
    struct { off_t start; size_t length; char *bytes; } *parts;
};

static struct snapshot snapshot_of(int fd, struct file *file) {
    struct stat found;
    fstat(fd, &found);
    struct snapshot taken = {.content = file->content, .size = found.st_size};
    struct range all = {0, found.st_size};
    int is_whole = file->is_whole || file->is_mapped;
    struct range *ranges = is_whole ? &all : file->ranges;
    size_t length = is_whole ? 1 : file->length;
    taken.parts = calloc(length + 1, sizeof *taken.parts);
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int readable = open(link, O_RDONLY | O_CLOEXEC);
    for (size_t i = 0; i < length; i++) {
        size_t wanted = ranges[i].end - ranges[i].start;
        char *bytes = malloc(wanted + 1);
        ssize_t got = pread(readable, bytes, wanted, ranges[i].start);
        taken.parts[taken.length].start = ranges[i].start;
        taken.parts[taken.length].length = got > 0 ? got : 0;
        taken.parts[taken.length++].bytes = bytes;
    }
    close(readable);
    control[UNSYNCED] -= file->length;
    file->length = 0;
    file->is_whole = 0;
    return taken;
}

static void apply(struct snapshot *taken, int is_durable) {
    NEXT(pwrite);
    static __typeof__(&ftruncate) resize;
    if (!resize) resize = (__typeof__(&ftruncate))dlsym(RTLD_NEXT, "ftruncate");
    int fd = open_content(taken->content);
    if (fd >= 0) resize(fd, taken->size); /* sizes are the journal's, which did not fail */
    for (size_t i = 0; i < taken->length; i++) {
        if (fd >= 0 && is_durable) next(fd, taken->parts[i].bytes, taken->parts[i].length, taken->parts[i].start);
        free(taken->parts[i].bytes);
    }
    free(taken->parts);
    if (fd >= 0) close(fd);
}

/* A disk may write early what nobody synced, and of that only some sectors. */
static void write_early(int fd, struct file *file, off_t start, off_t end) {
    if ((int64_t)(draw() % 100) >= control[EARLY_PERCENT]) return;
    size_t length = end - start, kept = draw() % 2 ? length : (draw() % (length / 512 + 1)) * 512;
    char *bytes = malloc(length + 1), link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int readable = open(link, O_RDONLY | O_CLOEXEC);
    ssize_t got = pread(readable, bytes, kept, start);
    int content = open_content(file->content);
    NEXT(pwrite);
    if (got > 0 && content >= 0) next(content, bytes, got, start);
    close(readable);
    close(content);
    free(bytes);
}

static void note_range(int fd, off_t start, off_t end) {
    struct stat found;
    if (!*shadow || fstat(fd, &found) != 0 || !S_ISREG(found.st_mode)) return;
    struct file *file = file_of(found.st_ino);
    mark(file, start, end);
    if (end > start) write_early(fd, file, start, end);
}

static void note_whole(int fd) {
    struct stat found;
    if (*shadow && fstat(fd, &found) == 0 && S_ISREG(found.st_mode)) file_of(found.st_ino)->is_whole = 1;
}

/* ---- at the start, what is there is durable ---- */

static int import(const char *path, const struct stat *found, int type, struct FTW *walk) {
    (void)walk;
    if (type != FTW_F) return 0;
    struct file *file = file_of(found->st_ino);
    file->is_whole = 1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct snapshot taken = snapshot_of(fd, file);
    apply(&taken, 1);
    close(fd);
    add_name(relative(path), file->content);
    return 0;
}

__attribute__((constructor)) static void start(void) {
    const char *page = getenv("CHAOS_SHIM_CONTROL"), *where = getenv("CHAOS_SHIM_DIRECTORY"), *copy = getenv("CHAOS_SHIM_SHADOW");
    if (!page || !where) return;
    int fd = open(page, O_RDWR | O_CLOEXEC);
    void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof no_control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) {
        fprintf(stderr, "shim: %s cannot be mapped\n", page);
        abort();
    }
    close(fd);
    control = mapped;
    chance ^= (uint64_t)getpid() << 32 | (uint64_t)time(NULL);
    if (copy) {
        char made[PATH_MAX];
        snprintf(made, sizeof made, "%s/contents", copy);
        snprintf(shadow, sizeof shadow, "%s", copy);
        mkdir(copy, 0700);
        mkdir(made, 0700);
        snprintf(directory, sizeof directory, "%s", where);
        directory_length = strlen(directory);
        nftw(where, import, 16, FTW_PHYS);
        write_names();
    }
    snprintf(directory, sizeof directory, "%s", where);
    directory_length = strlen(directory);
}

/* ---- syncs ---- */

/* A disk that hangs may answer at any time: the rest of the delay ends with its knob. */
static void delay(void) {
    const int64_t most = control[FSYNC_DELAY_MS];
    const struct timespec millisecond = {0, 1000000};
    for (int64_t passed = 0; passed < most && control[FSYNC_DELAY_MS] == most; passed++) nanosleep(&millisecond, NULL);
}

static int synced(int fd, int (*sync)(int)) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return sync(fd);
    count(FSYNCS);
    int failure = (int)control[FSYNC_ERRNO];
    struct stat found;
    if (!*shadow || fstat(fd, &found) != 0) {
        if (!failure) return sync(fd);
        count(FSYNCS_FAILED);
        return errno = failure, -1;
    }
    pthread_mutex_lock(&syncing);
    delay();
    struct snapshot taken = {0};
    if (S_ISREG(found.st_mode)) {
        pthread_mutex_lock(&state);
        taken = snapshot_of(fd, file_of(found.st_ino));
        pthread_mutex_unlock(&state);
    }
    int result = failure ? -1 : sync(fd), saved = failure ? failure : errno;
    if (failure) count(FSYNCS_FAILED);
    /* After a failure the kernel takes the pages for clean: no later sync writes them, and so they never reach the shadow. */
    pthread_mutex_lock(&state);
    if (S_ISREG(found.st_mode)) {
        apply(&taken, result == 0);
        if (result == 0) ensure_name(path, taken.content);
    } else if (S_ISDIR(found.st_mode) && result == 0) {
        sync_directory(path);
    }
    pthread_mutex_unlock(&state);
    pthread_mutex_unlock(&syncing);
    errno = saved;
    return result;
}

int fsync(int fd) {
    NEXT(fsync);
    return synced(fd, next);
}

int fdatasync(int fd) {
    NEXT(fdatasync);
    return synced(fd, next);
}

/* A map knows no file here: where one of ours is mapped for writing, every msync may be for it. Its bytes are made durable by
 * fsync only, which is stricter than msync. */
int msync(void *address, size_t length, int flags) {
    NEXT(msync);
    int is_ours = 0;
    pthread_mutex_lock(&state);
    for (struct file *file = files; file; file = file->next) is_ours |= file->is_mapped;
    pthread_mutex_unlock(&state);
    if (is_ours && control[FSYNC_ERRNO]) {
        count(FSYNCS_FAILED);
        return errno = (int)control[FSYNC_ERRNO], -1;
    }
    return next(address, length, flags);
}

static void note_map(int protection, int flags, int fd) {
    char path[PATH_MAX];
    struct stat found;
    if (!(flags & MAP_SHARED) || !(protection & PROT_WRITE) || fd < 0 || !path_of(fd, path) || fstat(fd, &found) != 0) return;
    pthread_mutex_lock(&state);
    file_of(found.st_ino)->is_mapped = 1;
    pthread_mutex_unlock(&state);
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    NEXT(mmap);
    note_map(protection, flags, fd);
    return next(address, length, protection, flags, fd, offset);
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset) {
    NEXT(mmap64);
    note_map(protection, flags, fd);
    return next(address, length, protection, flags, fd, offset);
}

/* ---- writes ---- */

/* CALL is the real call, START and END the bytes it has changed, once `done` is its result. */
#define WRITTEN(fd, call, start, end) \
    char path[PATH_MAX]; \
    if (!path_of(fd, path)) return call; \
    count(WRITES); \
    if (control[WRITE_ERRNO]) { \
        count(WRITES_FAILED); \
        return errno = (int)control[WRITE_ERRNO], -1; \
    } \
    pthread_mutex_lock(&state); \
    __typeof__(call) done = call; \
    int saved = errno; \
    if (done >= 0) note_range(fd, start, end); \
    pthread_mutex_unlock(&state); \
    errno = saved; \
    return done

#define POSITION lseek(fd, 0, SEEK_CUR)

ssize_t write(int fd, const void *bytes, size_t length) {
    NEXT(write);
    WRITTEN(fd, next(fd, bytes, length), POSITION - done, POSITION);
}

ssize_t writev(int fd, const struct iovec *parts, int length) {
    NEXT(writev);
    WRITTEN(fd, next(fd, parts, length), POSITION - done, POSITION);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) {
    NEXT(pwrite);
    WRITTEN(fd, next(fd, bytes, length, at), at, at + done);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) {
    NEXT(pwrite64);
    WRITTEN(fd, next(fd, bytes, length, at), at, at + done);
}

ssize_t pwritev(int fd, const struct iovec *parts, int length, off_t at) {
    NEXT(pwritev);
    WRITTEN(fd, next(fd, parts, length, at), at, at + done);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int length, off64_t at) {
    NEXT(pwritev64);
    WRITTEN(fd, next(fd, parts, length, at), at, at + done);
}

static off_t size_of(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 ? found.st_size : 0;
}

int ftruncate(int fd, off_t size) {
    NEXT(ftruncate);
    off_t before = size_of(fd);
    WRITTEN(fd, next(fd, size), size, before);
}

int ftruncate64(int fd, off64_t size) {
    NEXT(ftruncate64);
    off_t before = size_of(fd);
    WRITTEN(fd, next(fd, size), size, before);
}

int fallocate(int fd, int mode, off_t at, off_t length) {
    NEXT(fallocate);
    WRITTEN(fd, next(fd, mode, at, length), at, mode ? at + length : at);
}

int fallocate64(int fd, int mode, off64_t at, off64_t length) {
    NEXT(fallocate64);
    WRITTEN(fd, next(fd, mode, at, length), at, mode ? at + length : at);
}

/* These return the error instead of setting errno, and only make room. */
int posix_fallocate(int fd, off_t at, off_t length) {
    NEXT(posix_fallocate);
    char path[PATH_MAX];
    if (control[WRITE_ERRNO] && path_of(fd, path)) return count(WRITES_FAILED), (int)control[WRITE_ERRNO];
    return next(fd, at, length);
}

int posix_fallocate64(int fd, off64_t at, off64_t length) {
    NEXT(posix_fallocate64);
    char path[PATH_MAX];
    if (control[WRITE_ERRNO] && path_of(fd, path)) return count(WRITES_FAILED), (int)control[WRITE_ERRNO];
    return next(fd, at, length);
}

ssize_t copy_file_range(int from, off64_t *from_at, int fd, off64_t *at, size_t length, unsigned flags) {
    NEXT(copy_file_range);
    char path[PATH_MAX];
    if (path_of(fd, path)) {
        if (control[WRITE_ERRNO]) return count(WRITES_FAILED), errno = (int)control[WRITE_ERRNO], -1;
        pthread_mutex_lock(&state);
        note_whole(fd);
        pthread_mutex_unlock(&state);
    }
    return next(from, from_at, fd, at, length, flags);
}

/* ---- files that come and go ---- */

static void absolute(int parent, const char *path, char *whole) {
    char base[PATH_MAX] = "";
    char link[64];
    if (*path == '/') {
        snprintf(whole, PATH_MAX, "%s", path);
        return;
    }
    snprintf(link, sizeof link, parent == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", parent);
    ssize_t length = readlink(link, base, sizeof base - 1);
    base[length > 0 ? length : 0] = 0;
    snprintf(whole, PATH_MAX, "%.2000s/%.2000s", base, path);
}

static int opened(int fd, int flags) {
    char path[PATH_MAX];
    if (fd >= 0 && *shadow && (flags & O_TRUNC) && path_of(fd, path)) {
        pthread_mutex_lock(&state);
        note_whole(fd);
        pthread_mutex_unlock(&state);
    }
    return fd;
}

#define MODE(flags, last) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list more; \
        va_start(more, last); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

int open(const char *path, int flags, ...) {
    NEXT(open);
    MODE(flags, flags);
    return opened(next(path, flags, mode), flags);
}

int open64(const char *path, int flags, ...) {
    NEXT(open64);
    MODE(flags, flags);
    return opened(next(path, flags, mode), flags);
}

int openat(int parent, const char *path, int flags, ...) {
    NEXT(openat);
    MODE(flags, flags);
    return opened(next(parent, path, flags, mode), flags);
}

int openat64(int parent, const char *path, int flags, ...) {
    NEXT(openat64);
    MODE(flags, flags);
    return opened(next(parent, path, flags, mode), flags);
}

/* CALL removes what PATH names, or puts another file in its place. */
#define REMOVING(parent, path, call) \
    char whole[PATH_MAX]; \
    struct stat found; \
    absolute(parent, path, whole); \
    if (!*shadow || !is_below(whole)) return call; \
    pthread_mutex_lock(&state); \
    int was_there = lstat(whole, &found) == 0 && found.st_nlink == 1; \
    int done = call, saved = errno; \
    if (done == 0 && was_there) forget(found.st_ino); \
    pthread_mutex_unlock(&state); \
    errno = saved; \
    return done

int unlink(const char *path) {
    NEXT(unlink);
    REMOVING(AT_FDCWD, path, next(path));
}

int unlinkat(int parent, const char *path, int flags) {
    NEXT(unlinkat);
    REMOVING(parent, path, next(parent, path, flags));
}

int rename(const char *from, const char *to) {
    NEXT(rename);
    REMOVING(AT_FDCWD, to, next(from, to));
}

int renameat(int from_parent, const char *from, int to_parent, const char *to) {
    NEXT(renameat);
    REMOVING(to_parent, to, next(from_parent, from, to_parent, to));
}

int renameat2(int from_parent, const char *from, int to_parent, const char *to, unsigned flags) {
    NEXT(renameat2);
    REMOVING(to_parent, to, next(from_parent, from, to_parent, to, flags));
}

/* ---- the wall clock ---- */

static int64_t offset(void) { return control[CLOCK_OFFSET_SECONDS]; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    NEXT(clock_gettime);
    int result = next(clock, now);
    if (result == 0 && offset() && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        now->tv_sec += offset();
        count(CLOCK_READS);
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    NEXT(gettimeofday);
    int result = next(now, zone);
    if (result == 0) now->tv_sec += offset();
    return result;
}

time_t time(time_t *now) {
    NEXT(time);
    time_t seconds = next(NULL) + offset();
    if (now) *now = seconds;
    return seconds;
}

int timespec_get(struct timespec *now, int base) {
    NEXT(timespec_get);
    int result = next(now, base);
    if (result == TIME_UTC) now->tv_sec += offset();
    return result;
}

/* The kernel's clock is not shifted: who waits until a shifted time must not wait an hour too long. A time of the monotonic clock
 * is far smaller, and stays. */
static struct timespec unshifted(const struct timespec *until) {
    struct timespec real = *until;
    if (real.tv_sec > 1000000000) real.tv_sec -= offset();
    return real;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
    static __typeof__(&pthread_cond_timedwait) next;
    /* Two versions of it are there, and dlsym may give the old one. */
    if (!next) next = (__typeof__(next))dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!next) next = (__typeof__(next))dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    struct timespec real = unshifted(until);
    return next(condition, mutex, &real);
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
    NEXT(cnd_timedwait);
    struct timespec real = unshifted(until);
    return next(condition, mutex, &real);
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
    NEXT(pthread_mutex_timedlock);
    struct timespec real = unshifted(until);
    return next(mutex, &real);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    NEXT(sem_timedwait);
    struct timespec real = unshifted(until);
    return next(semaphore, &real);
}
