#include "status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"

static void fill(struct ls_error *err, int status, int sys_errno, const char *format, va_list arguments)
{
	if (!err)
		return;
	err->status = status;
	err->sys_errno = sys_errno;
	vsnprintf(err->message, sizeof(err->message), format, arguments);
}

int ls_fail(struct ls_error *err, int status, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fill(err, status, 0, format, arguments);
	va_end(arguments);
	return status;
}

int ls_fail_errno(struct ls_error *err, const char *format, ...)
{
	int saved = errno;
	va_list arguments;

	va_start(arguments, format);
	fill(err, LS_SYSTEM, saved, format, arguments);
	va_end(arguments);
	errno = saved;
	return LS_SYSTEM;
}

char *ls_printable(char *out, size_t capacity, const void *bytes, size_t length)
{
	const unsigned char *in = bytes;
	size_t used = 0;

	for (size_t i = 0; i < length; i++) {
		int plain = in[i] >= 0x20 && in[i] < 0x7f && in[i] != '\\';
		size_t need = plain ? 1 : 4;

		if (used + need + 4 > capacity) {
			memcpy(out + used, "...", 3);
			used += 3;
			break;
		}
		if (plain) {
			out[used++] = (char)in[i];
		} else {
			memcpy(out + used, "\\x", 2);
			ls_hex(out + used + 2, &in[i], 1);
			used += 4;
		}
	}
	out[used] = '\0';
	return out;
}
