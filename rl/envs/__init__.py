"""Environments: Gymnasium's, stepped in tensors, and environments that are written in tensors, registered here."""

from rl.envs import classic, minatar, remembering
from rl.envs.custom import CustomTensorEnv
from rl.envs.tensor_envs import register_tensor_env

register_tensor_env("CustomEnv-v0", CustomTensorEnv)
register_tensor_env("CartPole-v1", classic.CartPole)
register_tensor_env("Pendulum-v1", classic.Pendulum)
register_tensor_env("MountainCar-v0", classic.MountainCar)
register_tensor_env("Acrobot-v1", classic.Acrobot)
register_tensor_env("MinAtar/Asterix-v1", minatar.Asterix)
register_tensor_env("MinAtar/Breakout-v1", minatar.Breakout)
register_tensor_env("MinAtar/Freeway-v1", minatar.Freeway)
register_tensor_env("MinAtar/Seaquest-v1", minatar.Seaquest)
register_tensor_env("MinAtar/SpaceInvaders-v1", minatar.SpaceInvaders)
register_tensor_env("CartPoleNoVel-v1", remembering.CartPoleNoVel)
register_tensor_env("PendulumNoVel-v1", remembering.PendulumNoVel)
register_tensor_env("Recall-v0", remembering.Recall)
register_tensor_env("TMaze-v0", remembering.TMaze)
