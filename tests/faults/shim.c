/* Loaded before libc (LD_PRELOAD): counts file operations under given folders and, when armed, lets the n-th one fail,
   come up short, or end the process. Without `faults_arm` it does nothing but call on.

   Counters are in memory that forks share, so that a killed child's are still read. Operations that libc does for
   itself (fwrite, getline) are not seen; Python, HDF5, Rust and libstdc++ use the calls below. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum Mode { COUNT, FAIL, KILL_BEFORE, KILL_IN, KILL_AFTER, SHORT, SIGNAL };
enum { FOLDERS = 4, PATH = 1024, TRACE = 1 << 16 };

/* What an operation is, by one letter, which decides the errors that it can really have:
   r reads bytes   w writes bytes   c closes what was written   x closes what was read, or locks
   p looks a path up   m makes or moves a path   u removes one */

struct Shared {
  long count, fired, outside;   /* operations seen; how often it acted; writes outside the writable folders */
  char operation[32];           /* the first that it acted on */
  char path[PATH], where[PATH]; /* its path; the first path written outside */
  char kinds[TRACE];            /* the letter of each operation */
};
static struct Shared *shared;
static struct {
  int on, mode, error, persistent, stats;
  long number, again; /* the operation to act on; for SIGNAL a second one, 0 for none */
  char watched[FOLDERS][PATH], writable[FOLDERS][PATH];
} armed;

/* Counters of this process and its forks to come; a worker that other workers run next to calls it once. */
__attribute__((constructor)) void faults_begin(void) {
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void split(const char *list, char folders[FOLDERS][PATH]) {
  memset(folders, 0, FOLDERS * PATH);
  for (int i = 0; *list && i < FOLDERS; i++) {
    size_t n = strcspn(list, ":");
    snprintf(folders[i], PATH, "%.*s", (int)n, list);
    list += n + (list[n] == ':');
  }
}

/* watched, writable: folders, joined by ':'. */
void faults_arm(const char *watched, const char *writable, int mode, long number, int error, int persistent, long again,
                int stats) {
  split(watched, armed.watched);
  split(writable, armed.writable);
  armed.mode = mode, armed.number = number, armed.error = error, armed.persistent = persistent, armed.again = again;
  armed.stats = stats;
  memset(shared, 0, sizeof *shared);
  armed.on = 1;
}

void faults_disarm(void) { armed.on = 0; }
const struct Shared *faults_report(void) { return shared; }

static int below(const char *path, char folders[FOLDERS][PATH]) {
  for (int i = 0; i < FOLDERS && folders[i][0]; i++) {
    size_t n = strlen(folders[i]);
    if (!strncmp(path, folders[i], n) && (path[n] == '/' || !path[n])) return 1;
  }
  return 0;
}

/* Drop "." and ".." of an absolute path, without asking what is a link. */
static void normalise(char *path) {
  char *to = path;
  for (char *from = path; *from;) {
    size_t n = strcspn(from + 1, "/") + 1; /* a '/' and a name */
    if (n == 3 && !strncmp(from, "/..", 3)) {
      while (to > path && *--to != '/') {
      }
    } else if (n > 1 && !(n == 2 && from[1] == '.')) {
      memmove(to, from, n);
      to += n;
    }
    from += n;
  }
  *to = 0;
}

static void resolve(int folder, const char *name, char *out) {
  char link[64], base[PATH] = "";
  if (name && name[0] == '/') {
    snprintf(out, PATH, "%s", name);
    normalise(out);
    return;
  }
  if (folder == AT_FDCWD) {
    if (!getcwd(base, PATH)) base[0] = 0;
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t n = readlink(link, base, PATH - 1);
    base[n < 0 ? 0 : n] = 0;
  }
  if (name && *name)
    snprintf(out, PATH, "%.*s/%.*s", PATH / 2, base, PATH / 2 - 2, name);
  else
    snprintf(out, PATH, "%s", base);
  if (out[0] == '/') normalise(out);
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

enum Act { GO, STOP, HALF, DIE_AFTER, DIE_HALF };

static int can_have(int error, char kind) {
  switch (error) {
    case ENOSPC: return strchr("wcm", kind) != NULL;
    case EACCES: return strchr("pmu", kind) != NULL;
    case EINTR: return strchr("rwp", kind) != NULL;
    default: return kind != 'x';
  }
}

/* What to do with one operation; on STOP errno is set. */
static enum Act meet(const char *operation, char kind, int folder, const char *name) {
  char path[PATH];
  if (!armed.on) return GO;
  int before = errno;
  resolve(folder, name, path);
  errno = before;
  if ((kind == 'm' || kind == 'u') && path[0] == '/' && !below(path, armed.writable) &&
      (strncmp(path, "/dev/", 5) || !strncmp(path, "/dev/shm/", 9)) &&
      strncmp(path, "/proc/", 6) && strncmp(path, "/memfd:", 7) && !__sync_fetch_and_add(&shared->outside, 1))
    snprintf(shared->where, PATH, "%s %.*s", operation, PATH - 40, path);
  if (!below(path, armed.watched)) return GO;
  long n = __sync_add_and_fetch(&shared->count, 1);
  int later = armed.persistent && armed.number && n > armed.number;
  int now = n == armed.number || later || (armed.again && n == armed.again);
  if (n < TRACE) shared->kinds[n - 1] = kind;
  if (armed.mode == COUNT || !now || (armed.mode == FAIL && !can_have(armed.error, kind))) return GO;
  if (!__sync_fetch_and_add(&shared->fired, 1)) {
    snprintf(shared->operation, sizeof shared->operation, "%s", operation);
    snprintf(shared->path, PATH, "%s", path);
  }
  switch (armed.mode) {
    case FAIL: errno = armed.error; return STOP;
    case KILL_BEFORE: die();
    case KILL_IN:
      if (kind != 'w') die();
      return DIE_HALF;
    case KILL_AFTER: return DIE_AFTER;
    case SHORT: return HALF;
    case SIGNAL: kill(getpid(), armed.error);
  }
  errno = before;
  return GO;
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
/* One operation that is done or not; `failed` is what its failure returns. */
#define WHOLE(operation, kind, folder, path, failed, call) \
  do { \
    enum Act act = meet(operation, kind, folder, path); \
    if (act == STOP) return failed; \
    if (act == DIE_HALF) die(); \
    __typeof__(call) result = call; \
    if (act == DIE_AFTER) die(); \
    return result; \
  } while (0)
/* One that may be done in part: `part` writes or reads half. */
#define PARTIAL(operation, kind, fd, call, part) \
  do { \
    enum Act act = meet(operation, kind, fd, NULL); \
    if (act == STOP) return -1; \
    ssize_t result = act == HALF || act == DIE_HALF ? part : call; \
    if (act == DIE_AFTER || act == DIE_HALF) die(); \
    return result; \
  } while (0)
#define HALF_OF(n) ((n) > 1 ? (n) / 2 : (n))
#define WRITES(flags) (((flags) & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC)) ? 'm' : 'p')
#define MODE_OF(flags) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | __O_TMPFILE)) { \
    va_list rest; \
    va_start(rest, flags); \
    mode = va_arg(rest, mode_t); \
    va_end(rest); \
  }

int open(const char *p, int flags, ...) {
  MODE_OF(flags) REAL(open);
  WHOLE("open", WRITES(flags), AT_FDCWD, p, -1, real(p, flags, mode));
}
int open64(const char *p, int flags, ...) {
  MODE_OF(flags) REAL(open64);
  WHOLE("open", WRITES(flags), AT_FDCWD, p, -1, real(p, flags, mode));
}
int openat(int d, const char *p, int flags, ...) {
  MODE_OF(flags) REAL(openat);
  WHOLE("openat", WRITES(flags), d, p, -1, real(d, p, flags, mode));
}
int openat64(int d, const char *p, int flags, ...) {
  MODE_OF(flags) REAL(openat64);
  WHOLE("openat", WRITES(flags), d, p, -1, real(d, p, flags, mode));
}
int creat(const char *p, mode_t m) { REAL(creat); WHOLE("creat", 'm', AT_FDCWD, p, -1, real(p, m)); }
int creat64(const char *p, mode_t m) { REAL(creat64); WHOLE("creat", 'm', AT_FDCWD, p, -1, real(p, m)); }
FILE *fopen(const char *p, const char *m) {
  REAL(fopen);
  WHOLE("fopen", strpbrk(m, "wa+") ? 'm' : 'p', AT_FDCWD, p, NULL, real(p, m));
}
FILE *fopen64(const char *p, const char *m) {
  REAL(fopen64);
  WHOLE("fopen", strpbrk(m, "wa+") ? 'm' : 'p', AT_FDCWD, p, NULL, real(p, m));
}
DIR *opendir(const char *p) { REAL(opendir); WHOLE("opendir", 'p', AT_FDCWD, p, NULL, real(p)); }
int close(int fd) {
  REAL(close);
  enum Act act = meet("close", (fcntl(fd, F_GETFL) & O_ACCMODE) ? 'c' : 'x', fd, NULL);
  int error = errno, result = real(fd); /* the descriptor is gone whatever close says */
  if (act == DIE_AFTER || act == DIE_HALF) die();
  if (act == STOP) return errno = error, -1;
  return result;
}
ssize_t read(int fd, void *b, size_t n) {
  REAL(read);
  PARTIAL("read", 'r', fd, real(fd, b, n), real(fd, b, HALF_OF(n)));
}
ssize_t pread(int fd, void *b, size_t n, off_t o) {
  REAL(pread);
  PARTIAL("pread", 'r', fd, real(fd, b, n, o), real(fd, b, HALF_OF(n), o));
}
ssize_t pread64(int fd, void *b, size_t n, off64_t o) {
  REAL(pread64);
  PARTIAL("pread", 'r', fd, real(fd, b, n, o), real(fd, b, HALF_OF(n), o));
}
ssize_t write(int fd, const void *b, size_t n) {
  REAL(write);
  PARTIAL("write", 'w', fd, real(fd, b, n), real(fd, b, HALF_OF(n)));
}
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) {
  REAL(pwrite);
  PARTIAL("pwrite", 'w', fd, real(fd, b, n, o), real(fd, b, HALF_OF(n), o));
}
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) {
  REAL(pwrite64);
  PARTIAL("pwrite", 'w', fd, real(fd, b, n, o), real(fd, b, HALF_OF(n), o));
}
ssize_t writev(int fd, const struct iovec *v, int n) {
  REAL(writev);
  PARTIAL("writev", 'w', fd, real(fd, v, n), write(fd, v[0].iov_base, HALF_OF(v[0].iov_len)));
}
ssize_t sendfile(int o, int i, off_t *p, size_t n) {
  REAL(sendfile);
  PARTIAL("sendfile", 'w', o, real(o, i, p, n), real(o, i, p, HALF_OF(n)));
}
ssize_t sendfile64(int o, int i, off64_t *p, size_t n) {
  REAL(sendfile64);
  PARTIAL("sendfile", 'w', o, real(o, i, p, n), real(o, i, p, HALF_OF(n)));
}
ssize_t copy_file_range(int i, off64_t *pi, int o, off64_t *po, size_t n, unsigned f) {
  REAL(copy_file_range);
  PARTIAL("copy_file_range", 'w', o, real(i, pi, o, po, n, f), real(i, pi, o, po, HALF_OF(n), f));
}
int fsync(int fd) { REAL(fsync); WHOLE("fsync", 'w', fd, NULL, -1, real(fd)); }
int fdatasync(int fd) { REAL(fdatasync); WHOLE("fdatasync", 'w', fd, NULL, -1, real(fd)); }
int ftruncate(int fd, off_t n) { REAL(ftruncate); WHOLE("ftruncate", 'w', fd, NULL, -1, real(fd, n)); }
int ftruncate64(int fd, off64_t n) { REAL(ftruncate64); WHOLE("ftruncate", 'w', fd, NULL, -1, real(fd, n)); }
int truncate(const char *p, off_t n) { REAL(truncate); WHOLE("truncate", 'm', AT_FDCWD, p, -1, real(p, n)); }
int rename(const char *a, const char *b) { REAL(rename); WHOLE("rename", 'm', AT_FDCWD, b, -1, real(a, b)); }
int renameat(int d, const char *a, int e, const char *b) {
  REAL(renameat);
  WHOLE("rename", 'm', e, b, -1, real(d, a, e, b));
}
int renameat2(int d, const char *a, int e, const char *b, unsigned f) {
  REAL(renameat2);
  WHOLE("rename", 'm', e, b, -1, real(d, a, e, b, f));
}
int unlink(const char *p) { REAL(unlink); WHOLE("unlink", 'u', AT_FDCWD, p, -1, real(p)); }
int unlinkat(int d, const char *p, int f) { REAL(unlinkat); WHOLE("unlink", 'u', d, p, -1, real(d, p, f)); }
int remove(const char *p) { REAL(remove); WHOLE("unlink", 'u', AT_FDCWD, p, -1, real(p)); }
int rmdir(const char *p) { REAL(rmdir); WHOLE("rmdir", 'u', AT_FDCWD, p, -1, real(p)); }
int mkdir(const char *p, mode_t m) { REAL(mkdir); WHOLE("mkdir", 'm', AT_FDCWD, p, -1, real(p, m)); }
int mkdirat(int d, const char *p, mode_t m) { REAL(mkdirat); WHOLE("mkdir", 'm', d, p, -1, real(d, p, m)); }
int link(const char *a, const char *b) { REAL(link); WHOLE("link", 'm', AT_FDCWD, b, -1, real(a, b)); }
int linkat(int d, const char *a, int e, const char *b, int f) {
  REAL(linkat);
  WHOLE("link", 'm', e, b, -1, real(d, a, e, b, f));
}
int symlink(const char *a, const char *b) { REAL(symlink); WHOLE("symlink", 'm', AT_FDCWD, b, -1, real(a, b)); }
int flock(int fd, int how) { REAL(flock); WHOLE("flock", 'x', fd, NULL, -1, real(fd, how)); }
void *mmap(void *a, size_t n, int p, int f, int fd, off_t o) {
  if (fd < 0 || !armed.on) return (void *)syscall(SYS_mmap, a, n, p, f, fd, o); /* before dlsym works, too */
  WHOLE("mmap", 'r', fd, NULL, MAP_FAILED, (void *)syscall(SYS_mmap, a, n, p, f, fd, o));
}
void *mmap64(void *a, size_t n, int p, int f, int fd, off64_t o) { return mmap(a, n, p, f, fd, o); }
#define STAT(operation, folder, path, call) \
  do { \
    if (!armed.stats) return call; \
    WHOLE(operation, 'p', folder, path, -1, call); \
  } while (0)
int stat(const char *p, struct stat *s) { REAL(stat); STAT("stat", AT_FDCWD, p, real(p, s)); }
int stat64(const char *p, struct stat64 *s) { REAL(stat64); STAT("stat", AT_FDCWD, p, real(p, s)); }
int lstat(const char *p, struct stat *s) { REAL(lstat); STAT("lstat", AT_FDCWD, p, real(p, s)); }
int lstat64(const char *p, struct stat64 *s) { REAL(lstat64); STAT("lstat", AT_FDCWD, p, real(p, s)); }
int fstat(int fd, struct stat *s) { REAL(fstat); STAT("fstat", fd, NULL, real(fd, s)); }
int fstat64(int fd, struct stat64 *s) { REAL(fstat64); STAT("fstat", fd, NULL, real(fd, s)); }
int fstatat(int d, const char *p, struct stat *s, int f) { REAL(fstatat); STAT("stat", d, p, real(d, p, s, f)); }
int fstatat64(int d, const char *p, struct stat64 *s, int f) { REAL(fstatat64); STAT("stat", d, p, real(d, p, s, f)); }
int access(const char *p, int m) { REAL(access); STAT("access", AT_FDCWD, p, real(p, m)); }
int statx(int d, const char *restrict p, int f, unsigned m, struct statx *restrict s) {
  REAL(statx);
  STAT("stat", d, p, real(d, p, f, m, s));
}
