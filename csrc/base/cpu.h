/* What this CPU can do, and the operating system lets it do. */
#ifndef LS_CPU_H
#define LS_CPU_H

enum ls_cpu_feature {
	LS_CPU_AVX2 = 1 << 0,
	LS_CPU_AVX512 = 1 << 1, /* F, BW, DQ and VL together, as every CPU with any three of them has */
	LS_CPU_GFNI = 1 << 2,   /* with LS_CPU_AVX512 and VBMI2, as every CPU with AVX-512 and GFNI has */
};

/* The set of features, 0 on other architectures than x86-64. Computed at the first call, then one load.
 * Thread-safe: threads that race to be first all store the same value. */
unsigned ls_cpu_features(void);

/* Compile one function for a feature, so that no file needs flags of its own and the rest of it runs on
 * any x86-64. Helpers that are inlined into such a function need the same attribute. */
#define LS_TARGET_AVX2 __attribute__((target("avx2")))
#define LS_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define LS_TARGET_GFNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,gfni")))

#endif
