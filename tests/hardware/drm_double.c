/* Answers the questions that an Intel card's kernel driver is asked, in the place of the kernel: LD_PRELOAD puts it before
 * libc. Every other request goes on to libc. The card is described by the environment: CARD_BYTES, CARD_USED (-1: the
 * asker may not know), CARD_ERROR (an errno to fail with). Layouts are those of i915_drm.h and xe_drm.h, with the request
 * numbers made by the kernel's own macros, so that the numbers in the Python part are checked too.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

struct i915_query { uint32_t num_items, flags; uint64_t items_ptr; };
struct i915_item { uint64_t query_id; int32_t length; uint32_t flags; uint64_t data_ptr; };
struct i915_region { uint16_t class, instance; uint32_t rsvd0; uint64_t probed, unallocated, rsvd1[8]; };
struct i915_regions { uint32_t count, rsvd[3]; struct i915_region regions[2]; };

struct xe_query { uint64_t extensions; uint32_t query, size; uint64_t data, reserved[2]; };
struct xe_region { uint16_t class, instance; uint32_t min_page; uint64_t total, used, visible, visible_used, reserved[6]; };
struct xe_regions { uint32_t count, pad; struct xe_region regions[2]; };

#define I915_QUERY _IOWR('d', 0x40 + 0x39, struct i915_query)
#define XE_QUERY _IOWR('d', 0x40 + 0x00, struct xe_query)
#define HOST_BYTES (32ull << 30)

static long long number(const char *name, long long otherwise)
{
	const char *text = getenv(name);
	return text ? atoll(text) : otherwise;
}

static int fail(int error) { errno = error; return -1; }

static int i915(struct i915_query *query)
{
	struct i915_item *item = (struct i915_item *)(uintptr_t)query->items_ptr;
	uint64_t bytes = number("CARD_BYTES", 0);
	long long used = number("CARD_USED", -1);
	struct i915_regions answer = { .count = bytes ? 2 : 1 };

	if (query->num_items != 1 || query->flags || item->flags || item->query_id != 4)
		return fail(EINVAL);
	answer.regions[0] = (struct i915_region){ .class = 0, .probed = HOST_BYTES, .unallocated = HOST_BYTES };
	answer.regions[1] = (struct i915_region){ .class = 1, .probed = bytes, .unallocated = used < 0 ? bytes : bytes - used };
	if (item->length == 0)
		item->length = sizeof answer;
	else if (item->length < (int)sizeof answer)
		item->length = -EINVAL;
	else
		memcpy((void *)(uintptr_t)item->data_ptr, &answer, sizeof answer);
	return 0;
}

static int xe(struct xe_query *query)
{
	uint64_t bytes = number("CARD_BYTES", 0);
	long long used = number("CARD_USED", -1);
	struct xe_regions answer = { .count = bytes ? 2 : 1 };

	if (query->extensions || query->reserved[0] || query->reserved[1] || query->query != 1)
		return fail(EINVAL);
	answer.regions[0] = (struct xe_region){ .class = 0, .total = HOST_BYTES, .used = used < 0 ? 0 : 1 << 20 };
	answer.regions[1] = (struct xe_region){ .class = 1, .total = bytes, .used = used < 0 ? 0 : used };
	if (query->size == 0)
		query->size = sizeof answer;
	else if (query->size != sizeof answer)
		return fail(EINVAL);
	else
		memcpy((void *)(uintptr_t)query->data, &answer, sizeof answer);
	return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
	int (*next)(int, unsigned long, ...) = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
	va_list arguments;
	void *argument;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if ((request == I915_QUERY || request == XE_QUERY) && getenv("CARD_ERROR"))
		return fail(number("CARD_ERROR", EIO));
	if (request == I915_QUERY)
		return i915(argument);
	if (request == XE_QUERY)
		return xe(argument);
	return next(fd, request, argument);
}
