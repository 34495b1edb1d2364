"""What `cavmae launch` starts as each rank of a finetuning run, by module name."""

from cavmae_ds.launched import finetune_command, main

if __name__ == "__main__":
    main(finetune_command)
