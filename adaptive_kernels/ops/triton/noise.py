"""Standard normal noise of a stochastic solver, in Triton: csrc/core/noise.h."""

import triton
import triton.language as tl


@triton.jit
def philox(seed, step, quad):
    """Philox 4x32-10 with key = seed and counter = (quad, step), as csrc/core/noise.h."""
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    c0, c1 = quad.to(tl.uint32), (quad >> 32).to(tl.uint32)
    c2, c3 = step.to(tl.uint32), tl.cast(0, tl.uint32)
    for _ in tl.static_range(10):
        a_high, a_low = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        b_high, b_low = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = b_high ^ c1 ^ k0, b_low, a_high ^ c3 ^ k1, a_low
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def log_uniform(bits):
    u = ((bits >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    u_bits = u.to(tl.int32, bitcast=True)
    # The exponent of u / sqrt(1/2), rounded down.
    e = (u_bits - 0x3F3504F3) >> 23
    f = (u_bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    p = -0.07634493 * f + 0.12761575
    p = p * f - 0.13160183
    p = p * f + 0.14201759
    p = p * f - 0.16623357
    p = p * f + 0.20001227
    p = p * f - 0.2500082
    p = p * f + 0.3333333
    scale, square = e.to(tl.float32), f * f
    small = p * f * square + scale * -2.1219444e-4
    return (small - 0.5 * square) + f + scale * 0.693359375


@triton.jit
def cos_sin_uniform(bits):
    w = (bits >> 9).to(tl.int32)
    quarter = (w + (1 << 20)) >> 21
    r = ((w - (quarter << 21)).to(tl.float32) + 0.5) * 4.76837158203125e-07
    z = r * r
    c = 0.00090402167 * z - 0.020860288
    c = c * z + 0.25366923
    c = c * z - 1.2337005
    s = -0.004601658 * z + 0.07968003
    s = s * z - 0.6459635
    s = s * z + 1.5707964
    c = c * z + 1.0
    s = s * r
    odd = (quarter & 1) != 0
    x, y = tl.where(odd, s, c), tl.where(odd, c, s)
    return tl.where(((quarter + 1) & 2) != 0, -x, x), tl.where((quarter & 2) != 0, -y, y)


@triton.jit
def normal(seed, step, first_quad, BLOCK: tl.constexpr):
    """Standard normal noise of elements 4 first_quad .. 4 first_quad + BLOCK - 1."""
    c0, c1, c2, c3 = philox(seed, step, first_quad + tl.arange(0, BLOCK // 4))
    radius_0, radius_1 = tl.sqrt_rn(-2.0 * log_uniform(c0)), tl.sqrt_rn(-2.0 * log_uniform(c2))
    cos_0, sin_0 = cos_sin_uniform(c1)
    cos_1, sin_1 = cos_sin_uniform(c3)
    even = tl.join(radius_0 * cos_0, radius_1 * cos_1)
    odd = tl.join(radius_0 * sin_0, radius_1 * sin_1)
    return tl.reshape(tl.join(even, odd), (BLOCK,))
