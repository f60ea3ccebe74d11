// Preloaded, it makes storage fail below .../checkpoints: TROUBLE_FILE says "ERRNO CALL", where CALL
// is open, write, fsync, mkdir or rename; an empty or missing file lets all pass.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(const char *call, const char *path) {
  const char *control = getenv("TROUBLE_FILE");
  char text[64] = "", name[16] = "";
  int number = 0;
  if (!control || !path || !strstr(path, "/checkpoints")) return 0;
  long file = syscall(SYS_openat, AT_FDCWD, control, O_RDONLY);
  if (file < 0) return 0;
  syscall(SYS_read, file, text, sizeof text - 1);
  syscall(SYS_close, file);
  if (sscanf(text, "%d %15s", &number, name) != 2 || strcmp(name, call)) return 0;
  errno = number;
  return 1;
}

static int descriptor_fails(const char *call, int descriptor) {
  char link[64], path[PATH_MAX] = "";
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  return readlink(link, path, sizeof path - 1) > 0 && fails(call, path);
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name)                                                      \
  int name(const char *path, int flags, ...) {                          \
    va_list more;                                                       \
    va_start(more, flags);                                              \
    int mode = va_arg(more, int);                                       \
    va_end(more);                                                       \
    if ((flags & (O_CREAT | O_WRONLY | O_RDWR)) && fails("open", path)) return -1; \
    REAL(name);                                                         \
    return real(path, flags, mode);                                     \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                    \
  int name(int folder, const char *path, int flags, ...) {              \
    va_list more;                                                       \
    va_start(more, flags);                                              \
    int mode = va_arg(more, int);                                       \
    va_end(more);                                                       \
    if ((flags & (O_CREAT | O_WRONLY | O_RDWR)) && fails("open", path)) return -1; \
    REAL(name);                                                         \
    return real(folder, path, flags, mode);                             \
  }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int descriptor, const void *data, size_t size) {
  if (descriptor > 2 && descriptor_fails("write", descriptor)) return -1;
  REAL(write);
  return real(descriptor, data, size);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off_t at) {
  if (descriptor_fails("write", descriptor)) return -1;
  REAL(pwrite64);
  return real(descriptor, data, size, at);
}

int fsync(int descriptor) {
  if (descriptor_fails("fsync", descriptor)) return -1;
  REAL(fsync);
  return real(descriptor);
}

int fdatasync(int descriptor) {
  if (descriptor_fails("fsync", descriptor)) return -1;
  REAL(fdatasync);
  return real(descriptor);
}

int mkdir(const char *path, mode_t mode) {
  if (fails("mkdir", path)) return -1;
  REAL(mkdir);
  return real(path, mode);
}

int rename(const char *from, const char *to) {
  if (fails("rename", from)) return -1;
  REAL(rename);
  return real(from, to);
}
