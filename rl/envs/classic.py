"""Gymnasium's classic control problems as functions of batched tensors, with their constants and time limits."""

import math

import gymnasium as gym
import torch
from torch import Tensor

from rl.envs.tensor_envs import TensorEnv


def box(*high: float) -> gym.spaces.Box:
    """A symmetric Box of float32."""
    bounds = torch.tensor(high, dtype=torch.float32).numpy()
    return gym.spaces.Box(-bounds, bounds)


def wrapped(angle: Tensor) -> Tensor:
    """The angle [...] in [-π, π)."""
    return (angle + math.pi).remainder(2 * math.pi) - math.pi


class CartPole(TensorEnv):
    """CartPole-v1: keep a pole upright on a cart (Barto, Sutton & Anderson 1983).

    The state, and the observation, is position, velocity, angle and angular velocity.
    """

    GRAVITY, MASS_CART, MASS_POLE, HALF_LENGTH, FORCE, TAU = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
    X_LIMIT, ANGLE_LIMIT = 2.4, 12 * 2 * math.pi / 360

    observation_space = box(2 * X_LIMIT, math.inf, 2 * ANGLE_LIMIT, math.inf)
    action_space = gym.spaces.Discrete(2)
    max_episode_steps = 500
    initial_noise_size = 4

    def initial(self, noise: Tensor) -> Tensor:
        return 0.1 * noise - 0.05

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        _, x_dot, theta, theta_dot = state.unbind(-1)
        force = self.FORCE * (2 * action - 1)
        cos, sin = theta.cos(), theta.sin()
        mass, moment = self.MASS_CART + self.MASS_POLE, self.MASS_POLE * self.HALF_LENGTH
        acceleration = (force + moment * theta_dot.square() * sin) / mass
        theta_acc = (self.GRAVITY * sin - cos * acceleration) / (
            self.HALF_LENGTH * (4.0 / 3.0 - self.MASS_POLE * cos.square() / mass)
        )
        x_acc = acceleration - moment * theta_acc * cos / mass
        rates = torch.stack([x_dot, x_acc, theta_dot, theta_acc], dim=-1)
        return state + self.TAU * rates

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return torch.ones_like(state[..., 0])

    def terminal(self, state: Tensor) -> Tensor:
        return (state[..., 0].abs() > self.X_LIMIT) | (state[..., 2].abs() > self.ANGLE_LIMIT)


class Pendulum(TensorEnv):
    """Pendulum-v1: swing a pendulum up and hold it there. The state is angle and angular velocity."""

    GRAVITY, MASS, LENGTH, TAU, MAX_SPEED, MAX_TORQUE = 10.0, 1.0, 1.0, 0.05, 8.0, 2.0

    observation_space = box(1.0, 1.0, MAX_SPEED)
    action_space = box(MAX_TORQUE)
    max_episode_steps = 200
    initial_noise_size = 2

    def initial(self, noise: Tensor) -> Tensor:
        angle, speed = (2 * noise - 1).unbind(-1)
        return torch.stack([math.pi * angle, speed], dim=-1)

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        angle, speed = state.unbind(-1)
        gravity = 3 * self.GRAVITY / (2 * self.LENGTH) * angle.sin()
        torque = 3.0 / (self.MASS * self.LENGTH**2) * action[..., 0]
        speed = (speed + (gravity + torque) * self.TAU).clamp(-self.MAX_SPEED, self.MAX_SPEED)
        return torch.stack([angle + speed * self.TAU, speed], dim=-1)

    def observation(self, state: Tensor) -> Tensor:
        angle, speed = state.unbind(-1)
        return torch.stack([angle.cos(), angle.sin(), speed], dim=-1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        angle, speed = state.unbind(-1)
        return -(wrapped(angle).square() + 0.1 * speed.square() + 0.001 * action[..., 0].square())

    def terminal(self, state: Tensor) -> Tensor:
        return torch.zeros_like(state[..., 0], dtype=torch.bool)


class MountainCar(TensorEnv):
    """MountainCar-v0: drive an underpowered car up a hill (Moore 1990). The state is position and velocity."""

    FORCE, GRAVITY, MIN_POSITION, MAX_POSITION, MAX_SPEED, GOAL = 0.001, 0.0025, -1.2, 0.6, 0.07, 0.5

    observation_space = gym.spaces.Box(
        torch.tensor([MIN_POSITION, -MAX_SPEED]).numpy(), torch.tensor([MAX_POSITION, MAX_SPEED]).numpy()
    )
    action_space = gym.spaces.Discrete(3)
    max_episode_steps = 200
    initial_noise_size = 1

    def initial(self, noise: Tensor) -> Tensor:
        return torch.cat([0.2 * noise - 0.6, torch.zeros_like(noise)], dim=-1)

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        position, velocity = state.unbind(-1)
        velocity = velocity + (action - 1) * self.FORCE - (3 * position).cos() * self.GRAVITY
        velocity = velocity.clamp(-self.MAX_SPEED, self.MAX_SPEED)
        position = (position + velocity).clamp(self.MIN_POSITION, self.MAX_POSITION)
        at_wall = (position == self.MIN_POSITION) & (velocity < 0)
        return torch.stack([position, velocity * ~at_wall], dim=-1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return -torch.ones_like(state[..., 0])

    def terminal(self, state: Tensor) -> Tensor:
        return (state[..., 0] >= self.GOAL) & (state[..., 1] >= 0)


class Acrobot(TensorEnv):
    """Acrobot-v1: swing the lower of two links above the bar (Sutton 1996, with the equations of the book).

    The state is both angles, then both angular velocities.
    """

    GRAVITY, TAU, COM, MOMENT = 9.8, 0.2, 0.5, 1.0  # both links: length 1 m, mass 1 kg
    MAX_SPEED_1, MAX_SPEED_2 = 4 * math.pi, 9 * math.pi

    observation_space = box(1.0, 1.0, 1.0, 1.0, MAX_SPEED_1, MAX_SPEED_2)
    action_space = gym.spaces.Discrete(3)
    max_episode_steps = 500
    initial_noise_size = 4

    def initial(self, noise: Tensor) -> Tensor:
        return 0.2 * noise - 0.1

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        torque = (action - 1).to(state.dtype)
        k1 = self._rates(state, torque)
        k2 = self._rates(state + self.TAU / 2 * k1, torque)
        k3 = self._rates(state + self.TAU / 2 * k2, torque)
        k4 = self._rates(state + self.TAU * k3, torque)
        angle_1, angle_2, speed_1, speed_2 = (state + self.TAU / 6 * (k1 + 2 * k2 + 2 * k3 + k4)).unbind(-1)
        speed_1 = speed_1.clamp(-self.MAX_SPEED_1, self.MAX_SPEED_1)
        speed_2 = speed_2.clamp(-self.MAX_SPEED_2, self.MAX_SPEED_2)
        return torch.stack([wrapped(angle_1), wrapped(angle_2), speed_1, speed_2], dim=-1)

    def observation(self, state: Tensor) -> Tensor:
        angle_1, angle_2, speed_1, speed_2 = state.unbind(-1)
        return torch.stack([angle_1.cos(), angle_1.sin(), angle_2.cos(), angle_2.sin(), speed_1, speed_2], dim=-1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return self.terminal(next_state).to(state.dtype) - 1

    def terminal(self, state: Tensor) -> Tensor:
        angle_1, angle_2, _, _ = state.unbind(-1)
        return -angle_1.cos() - (angle_1 + angle_2).cos() > 1.0

    def _rates(self, state: Tensor, torque: Tensor) -> Tensor:
        angle_1, angle_2, speed_1, speed_2 = state.unbind(-1)
        cos, sin = angle_2.cos(), angle_2.sin()
        d1 = self.COM**2 + (1 + self.COM**2 + 2 * self.COM * cos) + 2 * self.MOMENT
        d2 = self.COM**2 + self.COM * cos + self.MOMENT
        phi_2 = self.COM * self.GRAVITY * (angle_1 + angle_2 - math.pi / 2).cos()
        phi_1 = (
            -self.COM * speed_2.square() * sin
            - 2 * self.COM * speed_2 * speed_1 * sin
            + (self.COM + 1) * self.GRAVITY * (angle_1 - math.pi / 2).cos()
            + phi_2
        )
        acceleration_2 = (torque + d2 / d1 * phi_1 - self.COM * speed_1.square() * sin - phi_2) / (
            self.COM**2 + self.MOMENT - d2.square() / d1
        )
        acceleration_1 = -(d2 * acceleration_2 + phi_1) / d1
        return torch.stack([speed_1, speed_2, acceleration_1, acceleration_2], dim=-1)
