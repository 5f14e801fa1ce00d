"""The methods of a trained policy by name, and the BibTeX of the papers that they are from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHODS = {
    "selm": "SELM", "sera": "SeRA", "spin": "SPIN", "curry": "Curry-DPO", "srlm": "SRLM", "oaif": "OAIF", "dpo": "DPO",
    "cdpo": "cDPO", "rdpo": "rDPO", "ipo": "IPO", "slic": "SLiC-HF", "simpo": "SimPO", "orpo": "ORPO",
}  # fmt: skip
_OF_LOSS = {"sigmoid": "dpo", "robust": "rdpo", "ipo": "ipo", "hinge": "slic", "simpo": "simpo", "orpo": "orpo"}
_OF_RULE = {"sera": "sera", "gold_over_sample": "spin", "curriculum": "curry"}

BIBTEX = {
    "selm": """@article{zhang2024selm,
  title={Self-Exploring Language Models: Active Preference Elicitation for Online Alignment},
  author={Zhang, Shenao and Yu, Donghan and Sharma, Hiteshi and Zhong, Han and Liu, Zhihan and Yang, Ziyi
    and Wang, Shuohang and Hassan, Hany and Wang, Zhaoran},
  journal={arXiv preprint arXiv:2405.19332}, year={2024}
}""",
    "sera": """@inproceedings{ko2025sera,
  title={SeRA: Self-Reviewing and Alignment of Large Language Models using Implicit Reward Margins},
  author={Ko, Jongwoo and Dingliwal, Saket and Ganesh, Bhavana and Sengupta, Sailik and Bodapati, Sravan and Galstyan, Aram},
  booktitle={International Conference on Learning Representations}, year={2025}
}""",
    "spin": """@inproceedings{chen2024spin,
  title={Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models},
  author={Chen, Zixiang and Deng, Yihe and Yuan, Huizhuo and Ji, Kaixuan and Gu, Quanquan},
  booktitle={International Conference on Machine Learning}, year={2024}
}""",
    "curry": """@article{pattnaik2024curry,
  title={Curry-DPO: Enhancing Alignment using Curriculum Learning \\& Ranked Preferences},
  author={Pattnaik, Pulkit and Maheshwary, Rishabh and Ogueji, Kelechi and Yadav, Vikas and Madhusudhan, Sathwik Tejaswi},
  journal={arXiv preprint arXiv:2403.07230}, year={2024}
}""",
    "srlm": """@inproceedings{yuan2024selfrewarding,
  title={Self-Rewarding Language Models},
  author={Yuan, Weizhe and Pang, Richard Yuanzhe and Cho, Kyunghyun and Li, Xian and Sukhbaatar, Sainbayar
    and Xu, Jing and Weston, Jason},
  booktitle={International Conference on Machine Learning}, year={2024}
}""",
    "oaif": """@article{guo2024oaif,
  title={Direct Language Model Alignment from Online AI Feedback},
  author={Guo, Shangmin and Zhang, Biao and Liu, Tianlin and Liu, Tianqi and Khalman, Misha and Llinares, Felipe and others},
  journal={arXiv preprint arXiv:2402.04792}, year={2024}
}""",
    "dpo": """@inproceedings{rafailov2023dpo,
  title={Direct Preference Optimization: Your Language Model is Secretly a Reward Model},
  author={Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Manning, Christopher D. and Ermon, Stefano
    and Finn, Chelsea},
  booktitle={Advances in Neural Information Processing Systems}, year={2023}
}""",
    "cdpo": """@misc{mitchell2023cdpo,
  title={A note on DPO with noisy preferences \\& relationship to IPO},
  author={Mitchell, Eric}, year={2023}
}""",
    "rdpo": """@inproceedings{chowdhury2024rdpo,
  title={Provably Robust DPO: Aligning Language Models with Noisy Feedback},
  author={Ray Chowdhury, Sayak and Kini, Anush and Natarajan, Nagarajan},
  booktitle={International Conference on Machine Learning}, year={2024}
}""",
    "ipo": """@inproceedings{azar2024ipo,
  title={A General Theoretical Paradigm to Understand Learning from Human Preferences},
  author={Azar, Mohammad Gheshlaghi and Guo, Zhaohan Daniel and Piot, Bilal and Munos, Remi and Rowland, Mark and Valko, Michal
    and Calandriello, Daniele},
  booktitle={International Conference on Artificial Intelligence and Statistics}, year={2024}
}""",
    "slic": """@article{zhao2023slic,
  title={SLiC-HF: Sequence Likelihood Calibration with Human Feedback},
  author={Zhao, Yao and Joshi, Rishabh and Liu, Tianqi and Khalman, Misha and Saleh, Mohammad and Liu, Peter J.},
  journal={arXiv preprint arXiv:2305.10425}, year={2023}
}""",
    "simpo": """@inproceedings{meng2024simpo,
  title={SimPO: Simple Preference Optimization with a Reference-Free Reward},
  author={Meng, Yu and Xia, Mengzhou and Chen, Danqi},
  booktitle={Advances in Neural Information Processing Systems}, year={2024}
}""",
    "orpo": """@inproceedings{hong2024orpo,
  title={ORPO: Monolithic Preference Optimization without Reference Model},
  author={Hong, Jiwoo and Lee, Noah and Thorne, James},
  booktitle={Conference on Empirical Methods in Natural Language Processing}, year={2024}
}""",
}  # fmt: skip


def methods_of(train: Mapping[str, Any], select: Mapping[str, Any], rank: Mapping[str, Any] | None) -> list[str]:
    """Returns the methods of one iteration, keys of METHODS, what is particular to it first and its loss last.

    train, select, rank: the resolved sections of its stages; rank is None where no samples were judged.
    """
    found = ["selm"] if train["alpha"] > 0 else []
    found += [_OF_RULE[select["rule"]]] if select["rule"] in _OF_RULE else []
    if rank is not None and rank["candidates"] == "samples":
        found.append("srlm" if rank["ranker"] == "self" else "oaif")
    loss = _OF_LOSS[train["loss_type"]]
    return [*found, "cdpo" if loss == "dpo" and train["label_smoothing"] > 0 else loss]


def project_bibtex(commit: str | None) -> str:
    """Returns the BibTeX of this project, at the commit that trained a policy."""
    note = f", note={{commit {commit}}}" if commit else ""
    return (
        "@software{handbook_ext,\n  title={handbook\\_ext: aligning language models by iterative preference optimisation},\n"
        f"  version={{0.1.0}}{note}\n}}"
    )
