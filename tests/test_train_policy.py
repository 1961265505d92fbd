"""Policy gradients against exact ones on a categorical, and the identities between the methods."""

from __future__ import annotations

import pytest
import torch
from train_toys import Bigram, finite_differences, random_batch

from klype.train.objectives import score_answers
from klype.train.policy import PolicySettings, advantages, grpo, kl_loss, rloo
from klype.values import Batch

torch.set_num_threads(1)
V, Q, G = 5, 2, 4


def reference_table() -> torch.Tensor:
    return Bigram(V, seed=9).table.detach()


def answers(model: Bigram, rewards_QG: torch.Tensor, scaling: str, seed: int = 0) -> Batch:
    """Fresh answers of Q questions, G each, with uneven ends."""
    batch = random_batch(seed, rows=Q * G, length=5, vocab=V)
    lengths = torch.arange(Q * G)[:, None] % 4 + 2
    weights = (torch.arange(5)[None] < lengths).double()
    bare = Batch(batch.tokens_BT, batch.targets_BT, weights)
    reference = Bigram(V, seed=9)
    extra = {
        "advantages_B": advantages(rewards_QG, scaling).flatten(),
        "old_logp_BT": score_answers(model, bare).logp_BT.detach(),
        "reference_logp_BT": score_answers(reference, bare).logp_BT.detach(),
    }
    return Batch(bare.tokens_BT, bare.targets_BT, weights, extra)


def some_rewards(seed: int = 1) -> torch.Tensor:
    return torch.randn(Q, G, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(objective: object, model: Bigram, batch: Batch, settings: PolicySettings) -> torch.Tensor:
    model.zero_grad()
    loss = objective(model, batch, settings)
    (loss.total / loss.count).backward()
    return model.table.grad.clone()


@pytest.mark.parametrize("average", ["token", "answer", "sum"])
@pytest.mark.parametrize("kl", ["k2", "k3"])
@pytest.mark.parametrize("objective", [grpo, rloo])
def test_gradient_is_the_finite_difference(objective: object, kl: str, average: str) -> None:
    model = Bigram(V)
    batch = answers(model, some_rewards(), "group")
    with torch.no_grad():  # answers that are no longer fresh: some ratios are clipped
        model.table.add_(0.3 * torch.randn(V, V, generator=torch.Generator().manual_seed(4), dtype=torch.float64))
    settings = PolicySettings(kl=kl, average=average, beta=0.0 if kl == "k2" and objective is grpo else 0.1)
    assert objective is rloo or objective(model, batch, settings).metrics["clipped"] > 0
    got = gradient(objective, model, batch, settings)

    def value() -> torch.Tensor:
        loss = objective(model, batch, settings)
        return loss.total / loss.count

    torch.testing.assert_close(got, finite_differences(value, model.table.data), rtol=1e-5, atol=1e-8)


def test_fresh_answers_have_ratio_one_and_nothing_clipped() -> None:
    model = Bigram(V)
    metrics = grpo(model, answers(model, some_rewards(), "group")).metrics
    assert metrics["ratio"] == pytest.approx(metrics["ratio_count"])
    assert metrics["clipped"] == 0


@pytest.mark.parametrize("scaling", ["group", "batch", "none", "rloo"])
@pytest.mark.parametrize("objective", [grpo, rloo])
def test_equal_rewards_have_no_gradient(objective: object, scaling: str) -> None:
    model = Bigram(V)
    rewards = torch.tensor([[0.3] * G, [-2.0] * G], dtype=torch.float64)
    got = gradient(objective, model, answers(model, rewards, scaling), PolicySettings(beta=0.0))
    assert got.abs().max() < 1e-12


def test_rloo_is_grpo_without_scaling_up_to_g_over_g_minus_one() -> None:
    model, settings = Bigram(V), PolicySettings(beta=0.0)
    one = gradient(rloo, model, answers(model, some_rewards(), "rloo"), settings)
    other = gradient(grpo, model, answers(model, some_rewards(), "none"), settings)
    torch.testing.assert_close(one, other * G / (G - 1))


def test_leaving_one_out_is_what_it_says() -> None:
    r = some_rewards()
    others = (r.sum(1, keepdim=True) - r) / (G - 1)
    torch.testing.assert_close(advantages(r, "rloo"), r - others)
    torch.testing.assert_close(
        advantages(r, "group").pow(2).mean(1), torch.ones(Q, dtype=torch.float64), rtol=1e-3, atol=0
    )


def test_tokens_outside_the_answer_have_no_part() -> None:
    model = Bigram(V)
    batch = answers(model, some_rewards(), "group")
    noise = torch.where(batch.weights_BT == 0, 5.0, 0.0).double()
    spoiled = {k: batch.extra[k] - noise for k in ("old_logp_BT", "reference_logp_BT")}
    other = Batch(batch.tokens_BT, batch.targets_BT, batch.weights_BT, batch.extra | spoiled)
    a, b = grpo(model, batch), grpo(model, other)
    torch.testing.assert_close(a.total, b.total)
    assert a.metrics == pytest.approx(b.metrics)


def exact_kl_gradient(table: torch.Tensor) -> torch.Tensor:
    logits = table[0].clone().requires_grad_()
    logp, ref = logits.log_softmax(-1), reference_table()[0].log_softmax(-1)
    (logp.exp() * (logp - ref)).sum().backward()
    return logits.grad


@pytest.mark.parametrize(("kind", "fresh"), [("k2", True), ("k3", True), ("k3", False)])
def test_kl_losses_have_the_gradient_of_the_reverse_kl(kind: str, fresh: bool) -> None:
    table = Bigram(V).table.detach()
    logits = table[0].clone().requires_grad_()
    logp, ref = logits.log_softmax(-1), reference_table()[0].log_softmax(-1)
    old = logp.detach() if fresh else Bigram(V, seed=5).table[0].detach().log_softmax(-1)
    loss = kl_loss(logp, ref, (logp - old).exp(), kind)
    (old.exp() * loss).sum().backward()  # the expectation over what was drawn, exactly
    torch.testing.assert_close(logits.grad, exact_kl_gradient(table))


def test_plain_k3_would_have_that_of_the_forward_kl() -> None:
    table = Bigram(V).table.detach()
    logits = table[0].clone().requires_grad_()
    logp, ref = logits.log_softmax(-1), reference_table()[0].log_softmax(-1)
    plain = kl_loss(logp, ref, torch.ones_like(logp), "k3")
    (logp.detach().exp() * plain).sum().backward()
    forward = logits.detach().clone().requires_grad_()
    (ref.exp() * (ref - forward.log_softmax(-1))).sum().backward()
    torch.testing.assert_close(logits.grad, forward.grad)
    assert not torch.allclose(logits.grad, exact_kl_gradient(table))


def test_the_measured_kl_is_unbiased() -> None:
    model = Bigram(V)
    logp, ref = model.table[0].log_softmax(-1).detach(), reference_table()[0].log_softmax(-1)
    r = logp - ref
    exact = (logp.exp() * r).sum()
    torch.testing.assert_close((logp.exp() * (torch.expm1(-r) + r)).sum(), exact)


def every_answer(model: Bigram, rewards_V: torch.Tensor, seed: int) -> Batch:
    """512 one-token answers to the prompt 0, drawn with seeded noise."""
    generator = torch.Generator().manual_seed(seed)
    logp_V = model.table[0].detach().log_softmax(-1)
    drawn = torch.multinomial(logp_V.exp(), 512, replacement=True, generator=generator)
    reference_V = torch.zeros(V, dtype=torch.float64).log_softmax(-1)
    extra = {
        "advantages_B": advantages(rewards_V[drawn][None], "rloo")[0],
        "old_logp_BT": logp_V[drawn][:, None],
        "reference_logp_BT": reference_V[drawn][:, None],
    }
    return Batch(torch.zeros(512, 1, dtype=torch.long), drawn[:, None], torch.ones(512, 1), extra)


@pytest.mark.parametrize(("objective", "kl"), [(grpo, "k3"), (grpo, "k2"), (rloo, "k2")])
def test_a_bandit_on_a_leash_ends_at_the_tilted_reference(objective: object, kl: str) -> None:
    rewards = torch.tensor([1.0, 0.5, 0.0, -0.5, -1.0], dtype=torch.float64)
    beta = 0.5
    expected = (rewards / beta).softmax(-1)  # argmax of E[reward] - beta KL(π‖uniform), known in closed form
    model = Bigram(V, seed=2)
    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    kept = []
    for seed in range(300):
        adam.zero_grad()
        loss = objective(model, every_answer(model, rewards, seed), PolicySettings(beta=beta, kl=kl))
        (loss.total / loss.count).backward()
        adam.step()
        if seed >= 150:
            kept.append(model.table[0].detach().softmax(-1))
    torch.testing.assert_close(torch.stack(kept).mean(0), expected, rtol=0, atol=0.02)
