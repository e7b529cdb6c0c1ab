"""A tiny policy, prompts and rewards, and a stream of its rollouts: what the tests of online learning share."""

from tiny_models import llama, random_model

from quatrain.alignment.policy import ActorCritic, FrozenReference, ValueHead
from quatrain.alignment.ppo import PPO
from quatrain.alignment.rewards.base import WeightedRewards
from quatrain.alignment.rollouts import Prompt, RolloutPlan, RolloutStream, Sampler
from quatrain.generation.config import GenerationConfig
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.models.io import model_folder
from quatrain.training.settings import TrainSettings
from quatrain.training.trainer import Hooks, Trainer

PROMPTS = [Prompt([7, 8, 9, 3, 4][:count], example=count) for count in (1, 2, 3, 4, 5)]


class Letters:
    """A tokenizer whose token n is the character n: completions have texts, and stop strings work."""

    eos_id = bos_id = None
    stop_ids = frozenset()
    special_ids = frozenset()
    chat_templates = {}

    def encode(self, text, special_tokens=False):
        return [ord(character) - 40 for character in text]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(token + 40) for token in ids)

    def token_to_id(self, token):
        return None


def policy(seed=0, **changes):
    """A tiny language model with two end tokens."""
    return random_model(llama(**{"eos_token_id": [3, 5]} | changes), seed, 0.1)


def varied(examples, completions):
    """A reward that depends on the prompt's example and the completion."""
    return [(len(text) + 3 * example) % 7 for example, text in zip(examples, completions, strict=True)]


def params(**changes):
    values = {"max_new_tokens": 12, "temperature": 0.7, "logprobs_mode": "temperature"}
    return SamplingParams(**values | changes)


def sampler_of(model, reward=varied, *, samples=2, seed=1, prompts=PROMPTS, tokenizer=None, **changes):
    engine = Engine(model, tokenizer or Letters(), settings=GenerationConfig())
    return Sampler(
        engine, prompts, WeightedRewards({"r": (reward, 1.0)}), params(**changes), samples=samples, seed=seed
    )


def ppo_setup(model=None, config=None, plan=None, folder=None, reward=varied, **changes):
    """A module, objective and stream of PPO."""
    model = model or policy()
    plan = plan or RolloutPlan(4, 2, minibatches=2, epochs=2, accumulation=2)
    sampler = sampler_of(model, reward, samples=plan.samples, **changes)
    module = ActorCritic(model, ValueHead(model.config.hidden_size))
    objective = PPO(config, temperature=sampler.params.temperature, reference=FrozenReference(model))
    return module, objective, RolloutStream(module, objective, sampler, plan, folder=folder)


def trainer_of(module, objective, stream, steps, *, folder=None, log=None, parallel=None, **changes):
    values = {"learning_rate": 3e-3, "warmup_steps": 0, "schedule": "constant", "precision": "float32", "log_every": 1}
    values |= {"accumulation": stream.plan.accumulation, "steps": steps}

    def save(place):
        model_folder.save(module.policy, place)
        module.save_value(place)

    def load(place):
        module.policy.load_state_dict(model_folder.load(place).state_dict())
        module.load_value(place)

    hooks = Hooks(save=save, load=load, log=(log if log is not None else []).append)
    settings = TrainSettings(**values | changes)
    return Trainer(
        module, objective, stream, settings, steps=steps, seed=3, folder=folder, hooks=hooks, parallel=parallel
    )
