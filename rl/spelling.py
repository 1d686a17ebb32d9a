"""What a word of a command line may have meant that is no flag here: other libraries' names, and what is near."""

import difflib
import re

from rl.config import CONFIGS, DecoupledConfig
from rl.envs.config import ENV_ID

MEANT = {  # flags by the names that they have elsewhere; docs/flags.md compares what they mean
    "activation_function": "activation activation_fn nonlinearity",
    "capture_video": "film record record_video save_video video",
    "checkpoint_every": "checkpoint_freq checkpoint_interval save_every save_freq save_interval",
    "clip_coef": "clip clip_eps clip_epsilon clip_param clip_range eps_clip ppo_clip",
    "clip_rewards": "clip_reward reward_clipping",
    "clip_vloss": "clip_range_vf clip_value_loss use_clipped_value_loss",
    "config": "config_file hyperparams params recipe yaml",
    "cuda": "device gpu gpu_id gpus use_cuda use_gpu",
    "desired_kl": "kl_target",
    "ent_coef": "ent entropy entropy_bonus entropy_coef entropy_coeff entropy_cost",
    "env_id": "domain env env_name environment game gym_id id scenario task",
    "env_kwargs": "env_args environment_kwargs",
    "env_wrapper": "wrapper wrapper_class wrappers",
    "eval_episodes": "n_eval_episodes num_eval_episodes",
    "eval_every": "eval_freq eval_frequency eval_interval",
    "execution": "compile jit torch_compile use_jit",
    "exp_name": "experiment experiment_name name run_name tag",
    "gae_lambda": "gae lam lambda lambd tau",
    "gamma": "discount discount_factor",
    "hidden_sizes": "dims hidden hidden_dim hidden_dims hidden_units layers net_arch num_units policy_kwargs width",
    "learning_rate": "actor_lr critic_lr lr optimizer_lr step_size",
    "log_dir": "logdir out outdir output output_dir results_dir root save_dir tensorboard_log workdir",
    "logger": "log tensorboard track use_wandb wandb",
    "log_std_init": "init_noise_std init_std",
    "max_grad_norm": "clip_grad clip_grad_norm grad_clip grad_norm max_grad",
    "memory": "gru lstm recurrent rnn rnn_type use_lstm use_rnn",
    "memory_size": "lstm_hidden_size rnn_hidden_dim rnn_size",
    "normalize_advantages": "adv_norm norm_adv normalize_adv normalize_advantage",
    "normalize_obs": "empirical_normalization norm_obs normalize normalize_input normalize_observations obs_norm",
    "normalize_reward": "norm_reward normalize_rewards reward_norm",
    "num_envs": "envs n_env n_envs nenvs nr_envs num_env num_environments num_parallel_envs parallel_envs",
    "num_minibatches": "minibatches mini_batches n_minibatches nminibatches num_mini_batch num_mini_batches",
    "num_steps": "horizon n_steps nsteps num_steps_per_env rollout_length rollout_steps unroll_length",
    "num_workers": "n_workers num_threads workers",
    "per_rank_batch_size": "batch batch_size minibatch_size mini_batch_size sgd_minibatch_size",
    "precision": "amp bf16 dtype fp16 half mixed_precision",
    "quiet": "no_progress silent verbosity",
    "resume": "checkpoint continue continue_from load load_run pretrained restore resume_from",
    "schedule": "anneal lr_schedule learning_rate_schedule",
    "terminate_on_life_loss": "episodic_life terminal_on_life_loss",
    "torch_deterministic": "deterministic",
    "total_episodes": "episodes max_episodes n_episodes num_episodes",
    "total_timesteps": "env_steps frames max_iterations max_steps n_timesteps num_env_steps num_frames num_iterations"
    " num_timesteps num_train_steps steps timesteps total_env_steps total_frames total_steps train_steps",
    "update_epochs": "epochs k_epochs n_epochs num_epochs num_learning_epochs num_sgd_iter ppo_epochs",
    "vectorization": "async async_envs subproc vec_env vec_env_type vectorized",
    "vf_coef": "critic_coef value_coef value_loss_coef vf_coeff vf_loss_coeff",
}
FLAG_OF = {name: flag for flag, names in MEANT.items() for name in names.split()}
LAUNCHERS = "the launcher takes it, before the program: fabric run --{} train_fabric.py"
ELSEWHERE = {  # what is no flag of a program
    **dict.fromkeys(("render", "render_mode", "play", "watch", "view"), "rl play RUN opens a window after training"),
    **dict.fromkeys(("eval", "evaluate", "test"), "rl evaluate RUN does that after training"),
    **dict.fromkeys(("export", "onnx"), "rl export RUN policy.onnx does that after training"),
    **dict.fromkeys(("devices", "num_devices", "nproc_per_node", "world_size"), LAUNCHERS.format("devices=2")),
    **dict.fromkeys(("nodes", "nnodes", "num_nodes"), LAUNCHERS.format("num-nodes=2")),
    **dict.fromkeys(("accelerator", "strategy", "main_port"), LAUNCHERS.format("accelerator=cpu")),
    **dict.fromkeys(("algo", "algorithm", "agent", "learner"), f"name {', '.join(CONFIGS)} before all flags"),
    "help_verbose": "--help-all explains all flags",
}


def unknown(field: str, learner: str, dashes: str = "") -> str:
    """What is wrong with a name that is no flag of a learner, and which flag, written with `dashes`, was meant."""
    own = CONFIGS[learner].flags()
    if takers := [name for name, config in CONFIGS.items() if field in config.flags()]:
        return f"is a flag of {', '.join(takers)}, not of {learner}"
    if field in DecoupledConfig().flags():
        return "is a flag of train_fabric_decoupled.py only"
    for name in (field, field.removeprefix("no_")):
        if name in ELSEWHERE:
            return f"is not a flag; {ELSEWHERE[name]}"
        if FLAG_OF.get(name) in own:
            return f"is not a flag; use {spelled(FLAG_OF[name], dashes)}"
    near = [FLAG_OF.get(name, name) for name in difflib.get_close_matches(field, [*own, *FLAG_OF], n=1)]
    return "is not a flag" + "".join(f"; use {spelled(name, dashes)}" for name in near if name in own)


def spelled(field: str, dashes: str = "--") -> str:
    """A field of `Config` as a flag."""
    return dashes + field.replace("_", "-")


def out_of_place(word: str, before: str, *, is_switch: bool) -> str:
    """What is wrong with a word that is neither a flag nor a value of `before`, the flag before it."""
    if word in CONFIGS:
        return "the learner's name comes before all flags"
    if ENV_ID.fullmatch(word) and re.search(r"-v\d+$", word):
        return f"belongs to no flag; use --env-id {word}"
    if is_switch:
        return f"{before} takes no value; --no-{before.removeprefix('--')} is its opposite"
    return f"{before} takes one value" if before else "belongs to no flag"
