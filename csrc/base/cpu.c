#include "cpu.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <stdatomic.h>
#include <stdint.h>

/* Bits of cpuid and xgetbv: Intel SDM volume 2, CPUID, and volume 1, section 13.3. */
enum {
	LEAF1_ECX_OSXSAVE = 1u << 27,
	LEAF7_EBX_AVX2 = 1u << 5,
	LEAF7_EBX_AVX512F = 1u << 16,
	LEAF7_EBX_AVX512DQ = 1u << 17,
	LEAF7_EBX_AVX512BW = 1u << 30,
	LEAF7_ECX_VBMI2 = 1u << 6,
	LEAF7_ECX_GFNI = 1u << 8,
	LEAF7_ECX_VBMI2_GFNI = LEAF7_ECX_VBMI2 | LEAF7_ECX_GFNI,
	XCR0_YMM = 0x06, /* SSE and AVX state */
	XCR0_ZMM = 0xe6, /* and opmask, upper halves, upper sixteen */
	KNOWN = 1 << 30,
};

#define LEAF7_EBX_AVX512VL (1u << 31)
#define LEAF7_EBX_AVX512 (LEAF7_EBX_AVX512F | LEAF7_EBX_AVX512DQ | LEAF7_EBX_AVX512BW | LEAF7_EBX_AVX512VL)

static uint32_t saved_registers(void)
{
	uint32_t low, high;

	__asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return low;
}

static unsigned detect(void)
{
	unsigned eax, ebx, ecx, edx, features = 0;
	uint32_t saved;

	if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & LEAF1_ECX_OSXSAVE))
		return 0;
	saved = saved_registers();
	if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
		return 0;
	if ((saved & XCR0_YMM) == XCR0_YMM && (ebx & LEAF7_EBX_AVX2))
		features |= LS_CPU_AVX2;
	if ((saved & XCR0_ZMM) == XCR0_ZMM && (ebx & LEAF7_EBX_AVX512) == LEAF7_EBX_AVX512)
		features |= LS_CPU_AVX512;
	if ((features & LS_CPU_AVX512) && (ecx & LEAF7_ECX_VBMI2_GFNI) == LEAF7_ECX_VBMI2_GFNI)
		features |= LS_CPU_GFNI;
	return features;
}

unsigned ls_cpu_features(void)
{
	static _Atomic unsigned mask;
	unsigned features = atomic_load_explicit(&mask, memory_order_relaxed);

	if (!(features & KNOWN)) {
		features = detect() | KNOWN;
		atomic_store_explicit(&mask, features, memory_order_relaxed);
	}
	return features & ~(unsigned)KNOWN;
}

#else

unsigned ls_cpu_features(void)
{
	return 0;
}

#endif
