"""Before anything is trained: the noise that a budget asks for, and how ε grows with the steps."""

from ffalora import PrivacyLedger, noise_multiplier_for


def main(
    samples: int = 2_000, batch: int = 250, steps: int = 50, epsilon: float = 3.0, delta: float = 1e-5
) -> list[float]:
    """Prints σ, and returns ε after a tenth, two tenths, … of the steps."""
    rate = batch / samples
    sigma = noise_multiplier_for(epsilon, delta, rate, steps)
    print(f"σ = {sigma:.3f} for ε = {epsilon:g} after {steps} steps of {batch} of {samples} samples")
    ledger = PrivacyLedger(0, samples, rate, sigma, delta, steps, epsilon)
    spent = []
    for step in range(steps):
        ledger.charge()
        if (step + 1) % max(1, steps // 10) == 0:
            spent.append(ledger.epsilon())
            print(f"after {step + 1:>3} steps: ε = {spent[-1]:.3f}")
    return spent


if __name__ == "__main__":
    main()
